"""Prompt debiasing: a word that contradicts a view is left out of the prompt told for it (Hong et al., arXiv 2303.15413).

"A smiling dog" asks for a face from behind too. Whether a word u speaks against a view v is asked of a masked language model:

    p(v | y)   = P([MASK] = v in "This image is depicting a [MASK] view of y"), normalised over side, front, back, overhead
    ratio(v,u) = p(v | y) / ((p(v | y) + p(v | y without u)) / 2)
    u leaves the prompt of view v where ratio(v, u) < 0.95: naming it makes the view that much less likely

Sentence, mean in the denominator and threshold are those of threestudio's implementation. Our eight sectors take the decision
of the view their name begins with, "front left view" that of front; "left side view" and "right side view" that of side. A view
that would be left without words keeps the whole prompt.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vp3d.errors import UserError
from vp3d.prompts import all_views, normalize_prompt, strip_view
from vp3d.system import torch_compat  # noqa: F401  (before transformers, which imports torchvision)
from vp3d.weights.locate import find_weights, read_whole
from vp3d.weights.readable import readable

import transformers  # isort: skip

DIRECTIONS = ("side", "front", "back", "overhead")
SENTENCE = "This image is depicting a {mask} view of {prompt}"
THRESHOLD = 0.95


def debiased_prompts(prompt: str, place: str, allowed: str = "") -> dict[str, str]:
    """The prompt for each of the view words, by the masked language model at `place` (as prior.path).

    allowed: the words that may be dropped, separated by spaces; "" is every word. Prompts come back without view words.
    """
    tokenizer, model = _load(place)
    words = strip_view(prompt).split(" ")
    may_go = set(normalize_prompt(allowed).replace(",", " ").split()) or {
        word.rstrip(",") for word in words
    }
    tried = [i for i, word in enumerate(words) if word.rstrip(",") in may_go]
    without = [" ".join(words[:i] + words[i + 1 :]) for i in tried]
    probabilities = view_probabilities(tokenizer, model, [" ".join(words), *without])
    contradicts = (
        view_ratios(probabilities[0], probabilities[1:]) < THRESHOLD
    )  # [words tried, directions]
    told = {}
    for n, direction in enumerate(DIRECTIONS):
        gone = {i for i, against in zip(tried, contradicts[:, n].tolist(), strict=True) if against}
        kept = normalize_prompt(" ".join(word for i, word in enumerate(words) if i not in gone))
        told[direction] = kept or " ".join(words)
    return {view: told[_direction(view)] for view in all_views()}


@torch.no_grad()
def view_probabilities(tokenizer: Any, model: Any, prompts: list[str]) -> Tensor:
    """p(v | y) [N, 4] in [0, 1], rows adding up to 1, of N prompts over `DIRECTIONS`."""
    sentences = [SENTENCE.format(mask=tokenizer.mask_token, prompt=prompt) for prompt in prompts]
    tokens = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    rows, places = torch.where(tokens.input_ids == tokenizer.mask_token_id)
    first = torch.stack(
        [places[rows == n][0] for n in range(len(prompts))]
    )  # the prompt itself might hold a mask
    logits = model(**tokens).logits[torch.arange(len(prompts)), first]
    return logits[:, tokenizer.convert_tokens_to_ids(list(DIRECTIONS))].float().softmax(dim=-1)


def view_ratios(whole: Tensor, without: Tensor) -> Tensor:
    """ratio(v, u) [W, V] from p(v | y) [V] and p(v | y without u) [W, V], both in [0, 1]; 1 is no influence, at most 2."""
    return whole / torch.lerp(without, whole.expand_as(without), 0.5)


def _direction(view: str) -> str:
    """Which of `DIRECTIONS` decides for these view words."""
    first = view.split()[0]
    return first if first in DIRECTIONS else "side"


def _load(place: str) -> tuple[Any, Any]:
    """Tokenizer and masked language model; UserError for what is missing, not safetensors, or knows no word for a view."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # it reports what a file has beyond this model, or lacks
    source, local = find_weights(place, "guidance.debias")
    options = {
        "local_files_only": local,
        "trust_remote_code": False,
    }  # False: no code of the folder's, and nobody is asked
    with readable(f"the language model {place}", "guidance.debias"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        model = read_whole(transformers.AutoModelForMaskedLM, source, **options)
    ids = tokenizer.convert_tokens_to_ids(list(DIRECTIONS))
    if tokenizer.mask_token is None or any(i is None or i == tokenizer.unk_token_id for i in ids):
        raise UserError(
            f"guidance.debias {place} has no mask or no single tokens for {', '.join(DIRECTIONS)}: use bert-base or alike"
        )
    return tokenizer, model.eval()
