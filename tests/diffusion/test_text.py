"""A prompt that a text encoder does not read to its end is cut before its view words."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.tiny_models import text_encoder, tokenizer
from vp3d.diffusion.text import TextEncoders

WORDS = "a red cube and a very long rest of words that this encoder of single letters never reads"
LIMIT = 77


@pytest.fixture(scope="module")
def encoders() -> TextEncoders:
    torch.manual_seed(0)
    return TextEncoders(((tokenizer(), text_encoder().eval()),))


@torch.no_grad()
def test_a_long_prompt_is_embedded_as_its_cut_with_the_view(encoders: TextEncoders) -> None:
    prompt = f"{WORDS} {WORDS}, back view"
    kept, cut = encoders.fit(prompt)
    assert (
        kept.endswith(", back view")
        and cut
        and f"{kept[: -len(', back view')]} {cut}" == (f"{WORDS} {WORDS}")
    )
    assert len(tokenizer()(kept).input_ids) <= LIMIT
    found = encoders.encode([prompt, "a cube"]).tokens
    assert torch.equal(found, encoders.encode([kept, "a cube"]).tokens)
    assert not torch.equal(found[:1], encoders.encode([kept.replace("back", "left")]).tokens)


@torch.no_grad()
def test_a_long_negative_prompt_is_taken(encoders: TextEncoders) -> None:
    negative = ", ".join(["low quality", "blurry", "noisy", "dull colours"] * 6)
    assert len(negative) > 227 and encoders.encode_null(negative).tokens.shape == (1, LIMIT, 32)


def test_what_fits_is_not_changed(encoders: TextEncoders) -> None:
    assert encoders.fit("A red  cube.") == ("A red  cube.", "")


def test_two_encoders_read_what_the_shorter_one_reads() -> None:
    short = tokenizer()
    short.model_max_length = 30
    models = (text_encoder().eval(), text_encoder().eval())
    both = TextEncoders(((tokenizer(), models[0]), (short, models[1])))
    kept, cut = both.fit(f"{WORDS} {WORDS}")
    assert len(short(kept).input_ids) <= 30 and f"{kept} {cut}" == f"{WORDS} {WORDS}"
