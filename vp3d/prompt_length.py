"""Cut a prompt to what a text encoder reads, so that its view words are kept.

A text encoder reads a fixed number of tokens (77 in CLIP, 35 in ImageReward) and drops the rest.
The view words are last, so they would be the first to go. Here words before them go instead.
"""

from __future__ import annotations

from collections.abc import Callable

from vp3d.prompts import ABOVE_SUFFIX, SECTORS, normalize_prompt, strip_view, with_view

LONGEST_VIEW = SECTORS[-1] + ABOVE_SUFFIX  # as many words as a view has at most
SHOWN = 200  # characters of the cut words that a warning quotes


def fit_prompt(prompt: str, limit: int, count: Callable[[str], int]) -> tuple[str, str]:
    """A prompt that an encoder reads to its end, and the words that were cut.

    Prompts that differ in their view words alone lose the same words.

    Args:
        prompt: The prompt, with or without view words.
        limit: Tokens that the encoder reads, those of its own included.
        count: Tokens of a text, those of the encoder's own included.

    Returns:
        The prompt itself and "", or the shortened prompt and the words it lost.
    """
    body = strip_view(prompt)
    view = normalize_prompt(prompt)[len(body) :].strip(" ,")

    def is_read(text: str) -> bool:
        return count(with_view(text, LONGEST_VIEW) if view else text) <= limit

    if is_read(body if view else prompt):
        return prompt, ""
    words = body.split(" ")
    fits, too_many = 0, len(words)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if is_read(" ".join(words[:middle])):
            fits = middle
        else:
            too_many = middle
    return with_view(" ".join(words[:fits]), view), " ".join(words[fits:])


def cut_lines(
    prompt: str, negative: str, fit: Callable[[str], tuple[str, str]], encoder: str
) -> list[str]:
    """A line for the prompt and one for the negative prompt, if an encoder cuts it.

    Args:
        prompt: The prompt.
        negative: The negative prompt, which is read without view words; may be empty.
        fit: `fit_prompt` of the encoder.
        encoder: The encoder, in words.

    Returns:
        Up to two lines, each with the words that are cut.
    """
    texts = {"prompt": with_view(prompt, LONGEST_VIEW), "negative prompt": strip_view(negative)}
    lines = []
    for name, text in texts.items():
        cut = fit(text)[1]
        shown = cut if len(cut) <= SHOWN else f"{cut[:SHOWN]}..."
        if cut:
            lines.append(f'{encoder} does not read the end of the {name}; it is cut: "{shown}"')
    return lines
