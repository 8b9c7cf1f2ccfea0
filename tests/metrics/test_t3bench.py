"""T3Bench's protocol: sphere, neighbour means by hand, pictures, scorers, captioners, graders."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from tests.helpers.tiny_rewards import write_imagereward
from vp3d.config.paths import ASSETS
from vp3d.errors import UserError
from vp3d.evaluate import t3bench
from vp3d.evaluate.runner import Settings
from vp3d.metrics import scorers
from vp3d.metrics.attribute_judge import load_judge
from vp3d.metrics.scorers import (
    GRADE_ATTEMPTS,
    KEY_VARIABLE,
    ChatEndpoint,
    ClipScorer,
    JudgeCaptioner,
    WordGrader,
    parse_grade,
)
from vp3d.metrics.t3bench import (
    FOVS_DEG,
    RADIUS,
    alignment,
    cameras_on,
    icosphere,
    neighbour_mean,
    normalised,
    quality,
    regional_score,
)
from vp3d.render.camera import camera_position
from vp3d.rewards.encoders import load_clip
from vp3d.rewards.imagereward import load_imagereward
from vp3d.types import Mesh


def ball(radius: float = 0.3, at: tuple[float, float, float] = (2.0, 0.0, 0.0)) -> Mesh:
    """A small white ball off the middle."""
    body = trimesh.creation.icosphere(subdivisions=2, radius=radius)
    vertices = np.asarray(body.vertices + at, np.float32)
    return Mesh(vertices, np.asarray(body.faces, np.int64), vertex_colors=np.ones_like(vertices))


def test_the_sphere_of_162_positions() -> None:
    sphere = icosphere(2)
    assert (len(icosphere(0).vertices), len(sphere.vertices), len(sphere.edges_unique)) == (
        12,
        162,
        480,
    )
    degree = np.bincount(sphere.edges_unique.ravel())
    assert sorted(set(degree.tolist())) == [5, 6] and (degree == 5).sum() == 12
    cameras = cameras_on(sphere, RADIUS, 45.0)
    assert np.allclose(camera_position(cameras).numpy(), RADIUS * sphere.vertices, atol=1e-4)
    assert len(sphere.vertices) * len(FOVS_DEG) == 810


def test_neighbour_means_by_hand() -> None:
    path = np.array([[0, 1], [1, 2]])
    assert neighbour_mean(np.array([3.0, 0.0, 6.0]), path).tolist() == [1.5, 3.0, 3.0]
    sphere = icosphere(0)  # every vertex has five neighbours
    spike = np.zeros((12, 2))
    spike[3, 1] = 1.0
    assert regional_score(spike, sphere, passes=0) == 1.0
    assert regional_score(spike, sphere, passes=1) == pytest.approx(1 / 6)
    assert regional_score(np.full((12, 3), 0.4), sphere) == pytest.approx(0.4)


def test_three_passes_against_the_same_by_a_matrix() -> None:
    sphere, scores = icosphere(2), np.random.default_rng(0).normal(size=(162, 5))
    mean = np.eye(162)
    for a, b in sphere.edges_unique:
        mean[a, b] = mean[b, a] = 1.0
    mean /= mean.sum(1, keepdims=True)
    assert regional_score(scores, sphere) == pytest.approx(
        float((mean @ mean @ mean @ scores.max(1)).max())
    )


class Brightness:
    """Scores a picture by its mean: the nearer the lens, the larger a white ball."""

    def score(self, prompt: str, rgb: torch.Tensor) -> torch.Tensor:
        """The means [B] in [0, 1]."""
        return rgb.mean((1, 2, 3))

    def quality(self, score: float) -> float:
        """As T3Bench maps ImageReward."""
        return 20.0 * score + 50.0


def test_quality_of_a_ball_is_its_largest_disc_and_of_nothing_is_black() -> None:
    mesh = normalised(ball())
    assert (
        np.abs(mesh.vertices).max() == pytest.approx(1.0)
        and np.abs(mesh.vertices.mean(0)).max() < 1e-6
    )
    found = quality(ball(), "a ball", Brightness(), size=24)
    # Radius of the disc in units of half a picture, at 24 degrees.
    edge = 1.0 / np.sqrt(RADIUS**2 - 1.0) / np.tan(np.deg2rad(12.0))
    assert edge > np.sqrt(2.0) and found["raw"] == pytest.approx(1.0)  # it fills the picture
    assert quality(None, "a ball", Brightness(), size=24) == {"quality": 50.0, "raw": 0.0}


def test_words_are_graded_by_what_a_third_of_the_captions_hold() -> None:
    grade = WordGrader().grade
    assert grade("a red ball on a blue cube", ["red ball on blue cube, with legs"] * 3) == 5
    assert grade(
        "a red ball on a blue cube, front view", ["red ball", "green tree", "ball"]
    ) == 1 + round(4 * 2 / 5)
    assert (
        grade("a red ball", ["nothing"] * 4) == 1
        and grade("a red ball on a red cube", ["red ball on cube"]) == 3
    )


def test_embedded_scorer_and_captioner() -> None:
    red = ball(at=(0.0, 0.0, 0.0))
    red = Mesh(red.vertices, red.faces, vertex_colors=np.full_like(red.vertices, 0.1) + [0.8, 0, 0])
    found = alignment(
        red, "a red sphere", JudgeCaptioner(load_judge(ASSETS / "judge")), WordGrader()
    )
    assert len(found["captions"]) == 12 and found["grade"] == 5 and found["alignment"] == 100.0
    scorer, picture = ClipScorer(load_clip(str(ASSETS / "clip"))), torch.full((1, 3, 64, 64), 0.7)
    assert (
        -1.0 <= float(scorer.score("a red sphere", picture)) <= 1.0 and scorer.quality(0.25) == 25.0
    )


def test_imagereward_scores_as_the_reward_does_and_cuts_long_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VP3D_MODELS", str(tmp_path))
    protocol = t3bench.Protocol(scorer="imagereward")
    settings = Settings(tmp_path / "work", overrides=("backend=cpu",))
    with pytest.raises(
        UserError,
        match="'imagereward' is not fetched; run: python launch.py models fetch imagereward$",
    ):
        t3bench.configured_scorer(protocol, settings)
    write_imagereward(tmp_path / "imagereward")
    scorer, reward = t3bench.configured_scorer(protocol, settings), load_imagereward("imagereward")
    pictures = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        scorer.score("a red sphere", pictures),
        reward.score(pictures, reward.target(["a red sphere"])),
    )
    assert scorer.quality(-0.5) == 40.0
    long = "a red " * 20 + "sphere"
    kept = reward.target(["a red " * 16 + "a"])  # 33 words between start and end
    assert (
        torch.equal(reward.target([long], cut=True), kept)
        and scorer.score(long, pictures).isfinite().all()
    )
    shortened = reward.fit(long)[0]
    assert torch.equal(reward.target([long]), reward.target([shortened])) and shortened != long


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict]]]:
    """A chat endpoint that answers "a red ball" to pictures and lists, and 4 to grades."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            answer = "4." if "Grade" in body["messages"][0]["content"][0]["text"] else "a red ball"
            data = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    service = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=service.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{service.server_port}/v1", asked
    service.shutdown()
    service.server_close()


def test_an_endpoint_captions_and_grades(
    server: tuple[str, list[dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = server
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    chat = ChatEndpoint(url, "a-model")
    assert (
        chat.caption(torch.zeros(2, 3, 8, 8)) == ["a red ball"] * 2
        and chat.grade("a red ball", ["a", "b"]) == 4
    )
    assert [len(a["messages"][0]["content"]) for a in asked] == [2, 2, 1, 1]
    first = asked[0]
    assert (
        first["path"] == "/v1/chat/completions"
        and first["key"] == "Bearer secret"
        and first["temperature"] == 0
    )
    assert first["messages"][0]["content"][1]["image_url"]["url"].startswith(
        "data:image/png;base64,"
    )


def test_an_endpoint_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match="--endpoint-model NAME"):
        ChatEndpoint("", "")
    with pytest.raises(UserError, match="gave no answer"):
        ChatEndpoint("http://127.0.0.1:9", "a-model", timeout_s=2.0).ask("hello")
    with pytest.raises(UserError, match="gave no answer"):
        ChatEndpoint("http://127.0.0.1:80a/v1", "a-model").ask("hello")


@pytest.mark.parametrize(
    "reply",
    ["4", " 4\n", "4.", "4!", "**4**", "(4)", '"4"', "`4`", "[4].", "“4”", "#4", "4,", "= 4"],
)
def test_one_digit_with_punctuation_is_a_grade(reply: str) -> None:
    assert parse_grade(reply) == 4


@pytest.mark.parametrize(
    "reply",
    [
        *("On a scale from 1 to 5, I would grade this 4.", "The 3D object gets a 5"),
        *("2 of the 3 features: 4", "10", "0", "6", "-4", "- 4", "+4", "4.0", "4.5", "4,5", "4/5"),
        *(
            "",
            "...",
            "four",
            "４",
            "²",
            "4 5",
            "44",
            "Grade: 4",
            "<think>4</think>4",
            "4 stars",
            "IV",
        ),
    ],
)
def test_anything_else_is_none(reply: str) -> None:
    assert parse_grade(reply) is None


def test_every_grade_is_its_number() -> None:
    assert [parse_grade(f"{n}.") for n in range(7)] == [None, 1, 2, 3, 4, 5, None]


class Talkative(ChatEndpoint):
    """An endpoint with scripted answers to the question for a grade."""

    def __init__(self, *replies: str) -> None:
        super().__init__("http://127.0.0.1:9/v1", "a-model")
        self.replies, self.questions = list(replies), []

    def ask(self, text: str, picture: object = None) -> str:
        if "Grade" not in text:
            return "a red ball"
        self.questions.append(text)
        return self.replies.pop(0)


def test_a_talkative_model_is_asked_again_and_then_refused() -> None:
    chat = Talkative("On a scale from 1 to 5, I would grade this 4.", "5")
    assert chat.grade("a red ball", ["a ball"]) == 5
    assert len(chat.questions) == 2 and "not one digit" in chat.questions[1]
    assert chat.questions[1].startswith(chat.questions[0])
    last = Talkative("a 2", "a 3", "4")
    assert last.grade("a red ball", ["a ball"]) == 4
    stubborn = Talkative(*["The 3D object gets a 5"] * 9)
    with pytest.raises(UserError, match=r"'The 3D object gets a 5' and not with one number"):
        stubborn.grade("a red ball", ["a ball"])
    assert len(stubborn.questions) == GRADE_ATTEMPTS == 3


@pytest.mark.parametrize("content", [None, "", "  \n", [{"type": "text"}], 4, {}])
def test_an_answer_without_text_is_refused(
    content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not read as the word None, or as a caption without words."""
    body = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
    monkeypatch.setattr(scorers, "open_url", lambda *_, **__: io.BytesIO(body))
    with pytest.raises(UserError, match="answered without text"):
        ChatEndpoint("http://127.0.0.1:9/v1", "a-model").ask("hello")
