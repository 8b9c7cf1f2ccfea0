"""Who scores, captions and grades for T3Bench's protocol (`evaluate/t3bench.py`); each is one class behind one call.

* `ClipScorer`: cosine of the embedded (or any open_clip) model. It is also what the rewards read: say so beside its figures.
* `ImageRewardScorer`: the published metric's own model, through our loader (`launch.py models fetch imagereward`).
* `JudgeCaptioner` and `WordGrader`: the toybox's judge names the views, the grade is the share of the prompt's words found.
* `ChatEndpoint`: captioner and grader through any server that speaks OpenAI's chat completions with pictures.

What is missing is a UserError that names it, raised when the scorer is made, before any asset is.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import urllib.request
from collections import Counter
from collections.abc import Sequence
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
from vp3d.types import to_uint8

KEY_VARIABLE = (
    "VP3D_ENDPOINT_KEY"  # environment variable with the endpoint's key, where it wants one
)
IGNORED = frozenset({"a", "an", "the", "with", "of", "and"})  # words that recall nothing


class ClipScorer:
    """100 times the CLIP cosine (CLIPScore without its clamp, Hessel et al. 2021)."""

    def __init__(self, clip: ClipEncoder) -> None:
        self.clip = clip

    def score(self, prompt: str, rgb: Tensor) -> Tensor:
        """Cosines [B] in [-1, 1] of pictures rgb [B, 3, H, H] in [0, 1]."""
        return text_image(rgb.to(self.clip.device), text_target([prompt], self.clip), self.clip)

    def quality(self, score: float) -> float:
        """The cosine in hundredths."""
        return 100.0 * score


class ImageRewardScorer:
    """ImageReward-v1.0 (Xu et al. 2023), mapped by 20 s + 50 as T3Bench does, without a clamp."""

    def __init__(self, model: ImageReward) -> None:
        self.model = model

    def score(self, prompt: str, rgb: Tensor) -> Tensor:
        """Scores [B], about -2 to 2, of pictures rgb [B, 3, H, H] in [0, 1]; a prompt of more than 35 tokens is cut."""
        with torch.no_grad():
            return self.model.score(
                rgb.to(self.model.device), self.model.target([prompt], cut=True)
            ).cpu()

    def quality(self, score: float) -> float:
        """T3Bench's map: 0 becomes 50."""
        return 20.0 * score + 50.0


class JudgeCaptioner:
    """Captions in the toybox's words by its judge, which is shown the asset as it was trained to see things."""

    views = CaptionViews(radius=3.4, fov_deg=40.0, ground=0.7, size=128)

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def caption(self, rgb: Tensor) -> list[str]:
        """One caption for each picture of rgb [B, 3, H, H] in [0, 1]: "red mushroom with white, on blue cube"."""
        return [_sentence(named) for named in judge_views(self.judge, rgb)]


def _sentence(named: dict[str, str]) -> str:
    words = [named["color_a"], named["object_a"]]
    detail = [
        v for k in ("accent_a", "pattern") if (v := named.get(k, "none")) not in ("none", "plain")
    ]
    words += ["with", *detail] if detail else []
    if named.get("object_b", "none") != "none":
        words += [named.get("relation", "none"), named["color_b"], named["object_b"]]
    return " ".join(word for word in words if word != "none")


class WordGrader:
    """Grades by the prompt's words that at least a third of the captions hold: 1 + 4 times their share, rounded."""

    def grade(self, prompt: str, captions: Sequence[str]) -> int:
        """1 to 5; of a word told twice, both must be found."""
        asked = Counter(_words(strip_view(prompt)))
        found = 0
        for word, times in asked.items():
            holds = sum(Counter(_words(text))[word] >= times for text in captions)
            found += times * (3 * holds >= len(captions))
        return 1 + round(4.0 * found / max(sum(asked.values()), 1))


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in IGNORED]


class ChatEndpoint:
    """A captioner and grader behind `url` (".../v1"): `POST url/chat/completions` of `model`, temperature 0."""

    views = CaptionViews()

    def __init__(self, url: str, model: str, timeout_s: float = 120.0) -> None:
        if not url.startswith(("http://", "https://")) or not model:
            raise UserError(
                "the endpoint needs a URL and a model: --endpoint http://localhost:8000/v1 --endpoint-model NAME"
            )
        self.url, self.model, self.timeout_s = url.rstrip("/"), model, timeout_s

    def ask(self, text: str, picture: Image.Image | None = None) -> str:
        """The model's answer to a text, and a picture beside it."""
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if picture is not None:
            png = io.BytesIO()
            picture.save(png, "PNG")
            uri = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode('ascii')}"
            content.append({"type": "image_url", "image_url": {"url": uri}})
        body = {
            "model": self.model,
            "temperature": 0,
            "messages": [{"role": "user", "content": content}],
        }
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {os.environ[KEY_VARIABLE]}"
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                told = json.loads(answer.read())["choices"][0]["message"]["content"]
        except (
            http.client.HTTPException,
            OSError,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
        ) as error:
            raise UserError(
                f"the endpoint {self.url} gave no answer ({error}); check --endpoint, --endpoint-model and {KEY_VARIABLE}"
            ) from error
        return str(told).strip()

    def caption(self, rgb: Tensor) -> list[str]:
        """One caption for each picture of rgb [B, 3, H, H] in [0, 1]."""
        question = "In one short sentence: which objects does this picture show, with their colours and features?"
        return [self.ask(question, Image.fromarray(picture)) for picture in to_uint8(rgb)]

    def grade(self, prompt: str, captions: Sequence[str]) -> int:
        """Two questions, as T3Bench asks them: merge the captions, then grade the recall of the prompt from 1 to 5."""
        listed = "\n".join(f"- {caption}" for caption in captions)
        merged = self.ask(
            "These captions describe one 3D object from several sides. Merge them into one short caption of the object, leaving "
            f"out background, surface and posture. Answer with the caption alone.\n{listed}"
        )
        told = self.ask(
            f"A 3D object was asked for as: {prompt}\nIt looks like: {merged}\nGrade from 1 (nothing) to 5 (everything) how much "
            "of what was asked for is there. Things beyond it do not count against it; right colours and features count for it. "
            "Answer with the number alone."
        )
        found = re.search(r"[1-5]", told)
        if found is None:
            raise UserError(
                f"the endpoint graded with {told[:40]!r} and not from 1 to 5; use another --endpoint-model"
            )
        return int(found[0])
