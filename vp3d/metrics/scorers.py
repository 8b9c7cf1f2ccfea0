"""Scorers, captioners and graders for T3Bench's protocol (`vp3d/metrics/t3bench.py`).

* `ClipScorer`: cosine of the embedded model or any open_clip model. The rewards read the same
  model, so state that next to its figures.
* `ImageRewardScorer`: the model of the published metric (`launch.py models fetch imagereward`).
* `JudgeCaptioner` and `WordGrader`: the toybox's judge names the views; the grade is the share of
  the prompt's words that it found.
* `ChatEndpoint`: captioner and grader behind a server with OpenAI's chat completions and pictures.

Whatever is missing is a UserError when the scorer is created, before any asset is generated.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vp3d.errors import UserError
from vp3d.metrics.attribute_judge import Judge, judge_views
from vp3d.metrics.t3bench import CaptionViews
from vp3d.prompts import strip_view
from vp3d.rewards.encoders import ClipEncoder
from vp3d.rewards.imagereward import ImageReward
from vp3d.rewards.text_image import text_image, text_target
from vp3d.system.files import JsonError, parse_json
from vp3d.system.web import open_url
from vp3d.types import to_uint8

KEY_VARIABLE = "VP3D_ENDPOINT_KEY"  # environment variable with the endpoint's key, if it needs one
STOP_WORDS = frozenset({"a", "an", "the", "with", "of", "and"})  # not counted by `WordGrader`
GRADES = ("1", "2", "3", "4", "5")
AROUND_A_GRADE = "*_`\"'“”‘’«»()[]{}<>.,;:!#= \t\r\n"  # may surround the digit of a grade
GRADE_ATTEMPTS = 3  # questions for one grade
ONE_DIGIT = "Your last answer was not one digit. Write one of 1, 2, 3, 4, 5 and nothing else."

# What a request raises if the server cannot be reached or its answer has another form.
BAD_ANSWER = (
    http.client.HTTPException,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    JsonError,
)
MAX_ANSWER_BYTES = 10_000_000


class ClipScorer:
    """100 times the CLIP cosine (CLIPScore without its clamp, Hessel et al. 2021)."""

    def __init__(self, clip: ClipEncoder) -> None:
        self.clip = clip

    def score(self, prompt: str, rgb: Tensor) -> Tensor:
        """Cosines [B] in [-1, 1] of pictures rgb [B, 3, H, H] in [0, 1]."""
        return text_image(rgb.to(self.clip.device), text_target([prompt], self.clip), self.clip)

    def quality(self, score: float) -> float:
        """100 times the cosine."""
        return 100.0 * score


class ImageRewardScorer:
    """ImageReward-v1.0 (Xu et al. 2023), mapped by 20 s + 50 as T3Bench does, without a clamp."""

    def __init__(self, model: ImageReward) -> None:
        self.model = model

    def score(self, prompt: str, rgb: Tensor) -> Tensor:
        """Scores [B], about -2 to 2, of pictures rgb [B, 3, H, H] in [0, 1].

        Prompts are cut after 35 tokens.
        """
        with torch.no_grad():
            target = self.model.target([prompt], cut=True)
            return self.model.score(rgb.to(self.model.device), target).cpu()

    def quality(self, score: float) -> float:
        """T3Bench's map: 0 becomes 50."""
        return 20.0 * score + 50.0


class JudgeCaptioner:
    """Captions in the toybox's words by its judge, on views like those of the judge's training."""

    views = CaptionViews(radius=3.4, fov_deg=40.0, background=0.7, size=128)

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def caption(self, rgb: Tensor) -> list[str]:
        """One caption for each picture of rgb [B, 3, H, H] in [0, 1]: "red mushroom with white"."""
        return [_sentence(named) for named in judge_views(self.judge, rgb)]


def _sentence(named: dict[str, str]) -> str:
    words = [named["color_a"], named["object_a"]]
    detail = [named.get(key, "none") for key in ("accent_a", "pattern")]
    detail = [value for value in detail if value not in ("none", "plain")]
    words += ["with", *detail] if detail else []
    if named.get("object_b", "none") != "none":
        words += [named.get("relation", "none"), named["color_b"], named["object_b"]]
    return " ".join(word for word in words if word != "none")


class WordGrader:
    """Grades by the share of the prompt's words that at least a third of the captions contain.

    The grade is 1 + 4 times that share, rounded.
    """

    def grade(self, prompt: str, captions: Sequence[str]) -> int:
        """1 to 5; a word that the prompt has twice must be twice in a caption."""
        expected = Counter(_words(strip_view(prompt)))
        found = 0
        for word, times in expected.items():
            count = sum(Counter(_words(text))[word] >= times for text in captions)
            found += times * (3 * count >= len(captions))
        return 1 + round(4.0 * found / max(sum(expected.values()), 1))


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in STOP_WORDS]


def parse_grade(reply: str) -> int | None:
    """The grade if the reply is one digit from 1 to 5, apart from punctuation around it.

    Any other text may contain digits that are no grade ("2 of the 3 features"), so it is None, and
    so are signs, fractions and decimals.

    Example:
        >>> parse_grade("**4**."), parse_grade("on a scale from 1 to 5: 4"), parse_grade("4/5")
        (4, None, None)
    """
    digit = reply.strip().strip(AROUND_A_GRADE)
    return int(digit) if digit in GRADES else None


class ChatEndpoint:
    """A captioner and grader behind a server with OpenAI's chat completions, temperature 0.

    Args:
        url: the server, ".../v1"; requests go to `url/chat/completions`.
        model: the name of the model.
        timeout_s: seconds to wait for an answer.

    Raises:
        UserError: the URL or the model is missing.
    """

    views = CaptionViews()

    def __init__(self, url: str, model: str, timeout_s: float = 120.0) -> None:
        if not url.startswith(("http://", "https://")) or not model:
            raise UserError(
                "the endpoint needs a URL and a model: give --endpoint http://localhost:8000/v1 "
                "--endpoint-model NAME"
            )
        self.url, self.model, self.timeout_s = url.rstrip("/"), model, timeout_s

    def ask(
        self,
        text: str,
        pictures: Sequence[Image.Image] = (),
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        """The model's answer to a text and pictures.

        Args:
            text: the question.
            pictures: sent as PNG, in this order.
            schema: a JSON schema that the answer must follow; not every server knows this.

        Raises:
            UserError: the server gives no answer, or one without text. Its cause is the
                urllib.error.HTTPError if the server answered with an error.
        """
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        for picture in pictures:
            png = io.BytesIO()
            picture.save(png, "PNG")
            uri = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode('ascii')}"
            content.append({"type": "image_url", "image_url": {"url": uri}})
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": 0,
            "messages": [{"role": "user", "content": content}],
        }
        if schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": schema},
            }
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {os.environ[KEY_VARIABLE]}"
        address, data = f"{self.url}/chat/completions", json.dumps(body).encode()
        try:
            with open_url(address, self.timeout_s, headers, data) as answer:
                content_of: Any = parse_json(answer.read(MAX_ANSWER_BYTES))
            reply = content_of["choices"][0]["message"]["content"]
        except BAD_ANSWER as error:
            raise UserError(
                f"the endpoint {self.url} gave no answer ({error}); "
                f"check --endpoint, --endpoint-model and {KEY_VARIABLE}"
            ) from error
        if not isinstance(reply, str) or not reply.strip():
            raise UserError(
                f"the endpoint {self.url} answered without text; use another --endpoint-model"
            )
        return reply.strip()

    def caption(self, rgb: Tensor) -> list[str]:
        """One caption for each picture of rgb [B, 3, H, H] in [0, 1]."""
        question = (
            "In one short sentence: which objects does this picture show, "
            "with their colours and features?"
        )
        return [self.ask(question, [Image.fromarray(picture)]) for picture in to_uint8(rgb)]

    def grade(self, prompt: str, captions: Sequence[str]) -> int:
        """Asks two questions, as T3Bench does: merge the captions, then grade the recall.

        Returns:
            1 to 5.

        Raises:
            UserError: the answer is not one number from 1 to 5, also when asked again.
        """
        listed = "\n".join(f"- {caption}" for caption in captions)
        merged = self.ask(
            "These captions describe one 3D object from several sides. Merge them into one short "
            "caption of the object, leaving out background, surface and posture. "
            f"Answer with the caption alone.\n{listed}"
        )
        question = (
            f"A 3D object was asked for as: {prompt}\nIt looks like: {merged}\n"
            "Grade from 1 (nothing) to 5 (everything) how much of what was asked for is there. "
            "Things beyond it do not count against it; right colours and features count for it. "
            "Answer with the number alone."
        )
        reply = self.ask(question)
        for _ in range(GRADE_ATTEMPTS - 1):
            if parse_grade(reply) is not None:
                break
            reply = self.ask(f"{question}\n{ONE_DIGIT}")
        grade = parse_grade(reply)
        if grade is None:
            raise UserError(
                f"the endpoint graded with {reply[:40]!r} and not with one number from 1 to 5, "
                f"{GRADE_ATTEMPTS} times; use another --endpoint-model"
            )
        return grade
