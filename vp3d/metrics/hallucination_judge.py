"""The hallucination score by a multimodal model: of an OpenAI-compatible server, or of a folder.

The pictures leave this machine if the server is another one. The key is read from the environment
variable `VP3D_ENDPOINT_KEY` and never written to a file. `vp3d.metrics.local_chat` has the models
of folders. The model is asked in both orders of the
pictures' questions; a score exists only if both answers are valid: there is no default score.
"""

from __future__ import annotations

import hashlib
import math
import time
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vp3d.errors import UserError
from vp3d.metrics.rubric import (
    KINDS,
    QUESTION,
    SCHEMA,
    VERSION,
    Answer,
    Element,
    as_json,
    complaint,
    read_answer,
)
from vp3d.system.files import write_text

LEAST_SIDE = 256  # pixels; smaller pictures are enlarged, since a model sees patches of 14 or more
MAX_SIDE = 1024  # larger ones are shrunk
ATTEMPTS = 3  # questions for one valid answer
WAITS_S = (2.0, 4.0, 8.0)  # before the same question again, if the server is busy
MAX_WAIT_S = 60.0  # the longest Retry-After that is obeyed
BUSY = frozenset((408, 425, 429, 500, 502, 503, 504))
NO_SCHEMA = frozenset((400, 404, 415, 422))  # answers of servers that know no `response_format`


@dataclass(frozen=True)
class Verdict:
    """What a judge says.

    Attributes:
        score: 1 to 5, the mean of both orders; None if there is none.
        disagreement: of the two orders, 0 to 4; None without a score.
        elements: what was invented, by the first order.
        reason: why there is no score, "" if there is one.
    """

    score: float | None
    disagreement: float | None = None
    elements: tuple[Element, ...] = ()
    reason: str = ""


class Chat(Protocol):
    """A multimodal model that answers questions; `ChatEndpoint` is one."""

    model: str  # its name, which kept answers are found by

    def ask(
        self, text: str, pictures: Sequence[Image.Image], schema: Mapping[str, Any] | None
    ) -> str:
        """The answer to a text about pictures; UserError without one."""
        ...


class MultimodalJudge:
    """Asks a multimodal model for the hallucination score.

    Args:
        endpoint: the model, such as that of a server.
        cache: a folder of answers, by the hash of pictures, model and question; None for none.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        endpoint: Chat,
        cache: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.endpoint, self.cache, self.sleep = endpoint, cache, sleep
        self.structured = True  # until the server refuses a schema

    def score(self, a: np.ndarray, b: np.ndarray) -> Verdict:
        """The verdict on picture `a` with reference `b`, both uint8 `[H, W, 3]` sRGB."""
        pictures = [_sized(a), _sized(b)]
        try:
            forward = self._answer(pictures)
            backward = self._answer(pictures[::-1])
        except UserError as error:
            return Verdict(None, reason=str(error))
        return Verdict(
            (forward.score + backward.score) / 2.0,
            abs(forward.score - backward.score),
            forward.elements,
        )

    def _answer(self, pictures: Sequence[Image.Image]) -> Answer:
        """A valid answer, from the cache or the server.

        Raises:
            UserError: the server gives none.
        """
        path = None if self.cache is None else self.cache / f"{self._key(pictures)}.json"
        if path is not None and path.is_file():
            try:
                return read_answer(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                path.unlink(missing_ok=True)  # a damaged answer is asked for again
        question, fault = QUESTION, ""
        for _ in range(ATTEMPTS):
            try:
                answer = read_answer(self._ask(question, pictures))
            except ValueError as error:
                fault = str(error)
                question = complaint(fault)
                continue
            if path is not None:
                write_text(path, as_json(answer))
            return answer
        raise UserError(
            f"no score: {self.endpoint.model} gave no valid answer in {ATTEMPTS} tries ({fault}); "
            "use another model"
        )

    def _ask(self, question: str, pictures: Sequence[Image.Image]) -> str:
        """The text of one answer; waits while the server is busy."""
        waits = iter(WAITS_S)
        while True:
            try:
                schema = SCHEMA if self.structured else None
                return self.endpoint.ask(question, pictures, schema)
            except UserError as error:
                cause = error.__cause__
                status = cause.code if isinstance(cause, urllib.error.HTTPError) else 0
                if self.structured and status in NO_SCHEMA:
                    self.structured = False
                    continue
                wait = next(waits, None) if status in BUSY else None
                if wait is None:
                    raise
                self.sleep(max(wait, _retry_after(cause)))

    def _key(self, pictures: Sequence[Image.Image]) -> str:
        digest = hashlib.sha256(f"{VERSION} {self.endpoint.model}\n{QUESTION}".encode())
        for picture in pictures:
            digest.update(f"{picture.size}".encode() + picture.tobytes())
        return digest.hexdigest()


def _retry_after(error: BaseException | None) -> float:
    """Seconds that the server asks to wait, at most `MAX_WAIT_S`; 0 if it does not say."""
    if not isinstance(error, urllib.error.HTTPError):
        return 0.0
    try:
        asked = float(error.headers.get("Retry-After", "0"))
    except ValueError:  # a date
        return 0.0
    return min(max(asked, 0.0), MAX_WAIT_S) if math.isfinite(asked) else 0.0


def _sized(rgb: np.ndarray) -> Image.Image:
    """The picture, enlarged by whole pixels if it is small, shrunk if it is large."""
    picture = Image.fromarray(rgb)
    side = max(picture.size)
    if side < LEAST_SIDE:
        factor = -(-LEAST_SIDE // side)
        size = (picture.width * factor, picture.height * factor)
        return picture.resize(size, Image.Resampling.NEAREST)
    if side > MAX_SIDE:
        picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return picture


def in_words(elements: Sequence[Element]) -> str:
    """The elements as a list in words: "added red area left (small); ..."."""
    return "; ".join(f"{e.kind} {e.what} ({e.size})" for e in elements if e.kind in KINDS)
