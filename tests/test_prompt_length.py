"""A prompt is cut to what an encoder reads, before its view words, and the cut is said."""

from __future__ import annotations

import pytest

from vp3d.prompt_length import LONGEST_VIEW, cut_lines, fit_prompt
from vp3d.prompts import all_views, strip_view, with_view


def count(text: str) -> int:
    """A tokenizer with one token a word and comma, and two of its own."""
    return len(text.replace(",", " ,").split()) + 2


def test_what_fits_is_returned_as_it_is() -> None:
    assert fit_prompt("A  Red cube.", 6, count) == ("A  Red cube.", "")


@pytest.mark.parametrize("limit", range(10, 20))
def test_every_view_loses_the_same_words_and_keeps_its_view(limit: int) -> None:
    prompt = "a knight in armour with a sword and a shield on a horse"
    lost = set()
    for view in all_views():
        kept, cut = fit_prompt(with_view(prompt, view), limit, count)
        assert kept.endswith(view) and count(kept) <= limit
        assert f"{strip_view(kept)} {cut}".strip() == prompt
        lost.add(cut)
    assert len(lost) == 1
    longest = count(with_view(prompt, LONGEST_VIEW))
    assert bool(lost.pop()) == (longest > limit)


def test_as_many_words_as_possible_are_kept() -> None:
    words = " ".join(f"w{n}" for n in range(300))
    kept, cut = fit_prompt(words, 77, count)
    assert count(kept) == 77 and cut.split()[0] == "w75" and cut.split()[-1] == "w299"


def test_lines_name_the_encoder_the_text_and_the_words() -> None:
    def fit(text: str) -> tuple[str, str]:
        return fit_prompt(text, 11, count)

    assert cut_lines("a red cube", "", fit, "the encoder") == []
    lines = cut_lines("a red cube on a table", "b " * 200 + "dull", fit, "the encoder")
    assert lines[0] == 'the encoder does not read the end of the prompt; it is cut: "on a table"'
    assert "negative prompt" in lines[1] and lines[1].endswith('..."') and len(lines[1]) < 300


def test_a_text_of_view_words_alone_is_cut_to_them() -> None:
    assert fit_prompt("a b c, back view", 3, count)[0] == "back view"
