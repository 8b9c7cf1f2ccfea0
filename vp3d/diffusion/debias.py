"""Prompt debiasing: drop the words that contradict a view from the prompt of that view.

(Hong et al., arXiv 2303.15413.) "A smiling dog" asks for a face in the back view, too. A masked
language model decides whether a word u of the prompt y contradicts a view v:

    p(v | y)   = P([MASK] = v in "This image is depicting a [MASK] view of y"),
                 normalised over side, front, back, overhead
    ratio(v,u) = p(v | y) / ((p(v | y) + p(v | y without u)) / 2)

u is dropped from the prompt of view v if ratio(v, u) < 0.95: the word makes the view that much less
likely. The sentence, the mean in the denominator and the threshold are those of threestudio. Our
eight sectors use the view that their name starts with ("front left view" uses front); "left side
view" and "right side view" use side. A view that would lose all words keeps the full prompt.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vp3d.errors import UserError
from vp3d.prompts import all_views, normalize_prompt, strip_view
from vp3d.system import torch_compat  # noqa: F401  (before transformers, which imports torchvision)
from vp3d.weights.locate import find_weights, read_whole
from vp3d.weights.model_settings import offline
from vp3d.weights.readable import readable

import transformers  # isort: skip

DIRECTIONS = ("side", "front", "back", "overhead")
SENTENCE = "This image is depicting a {mask} view of {prompt}"
THRESHOLD = 0.95
# The model types of config.json that are loaded; all have their code in transformers
MODEL_TYPES = ("bert", "distilbert", "roberta", "albert", "electra", "mpnet", "modernbert")


def debiased_prompts(prompt: str, model_path: str, allowed: str = "") -> dict[str, str]:
    """The debiased prompt of each view.

    Args:
        prompt: The prompt; its view words are ignored.
        model_path: The masked language model, a folder or hub name like prior.path.
        allowed: Words that may be dropped, separated by spaces; "" allows every word.

    Returns:
        For each of the view words (`prompts.all_views`) the prompt, without view words.

    Raises:
        UserError: if the model cannot be loaded or does not know the words of the views.
    """
    tokenizer, model = _load(model_path)
    words = strip_view(prompt).split(" ")
    droppable = set(normalize_prompt(allowed).replace(",", " ").split()) or {
        word.rstrip(",") for word in words
    }
    tried = [i for i, word in enumerate(words) if word.rstrip(",") in droppable]
    without = [" ".join(words[:i] + words[i + 1 :]) for i in tried]
    probabilities = view_probabilities(tokenizer, model, [" ".join(words), *without])
    # [words tried, directions]
    contradicts = view_ratios(probabilities[0], probabilities[1:]) < THRESHOLD
    by_direction = {}
    for n, direction in enumerate(DIRECTIONS):
        dropped = {i for i, drop in zip(tried, contradicts[:, n].tolist(), strict=True) if drop}
        kept = normalize_prompt(" ".join(word for i, word in enumerate(words) if i not in dropped))
        by_direction[direction] = kept or " ".join(words)
    return {view: by_direction[_direction(view)] for view in all_views()}


@torch.no_grad()
def view_probabilities(tokenizer: Any, model: Any, prompts: list[str]) -> Tensor:
    """p(v | y) [N, 4] of N prompts over `DIRECTIONS`; the rows add up to 1."""
    sentences = [SENTENCE.format(mask=tokenizer.mask_token, prompt=prompt) for prompt in prompts]
    tokens = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    rows, positions = torch.where(tokens.input_ids == tokenizer.mask_token_id)
    # the first of a row: the prompt itself might contain a mask
    first = torch.stack([positions[rows == n][0] for n in range(len(prompts))])
    logits = model(**tokens).logits[torch.arange(len(prompts)), first]
    return logits[:, tokenizer.convert_tokens_to_ids(list(DIRECTIONS))].float().softmax(dim=-1)


def view_ratios(full: Tensor, without: Tensor) -> Tensor:
    """ratio(v, u) [W, V] in [0, 2] from p(v | y) [V] and p(v | y without u) [W, V].

    1 means that the word has no influence.
    """
    return full / torch.lerp(without, full.expand_as(without), 0.5)


def _direction(view: str) -> str:
    """Which of `DIRECTIONS` these view words use."""
    first = view.split()[0]
    return first if first in DIRECTIONS else "side"


def _load(model_path: str) -> tuple[Any, Any]:
    """The tokenizer and the masked language model.

    UserError if they are missing, not safetensors, or lack a word of `DIRECTIONS`.
    """
    transformers.utils.logging.disable_progress_bar()
    # no warnings about tensors of the file that this class does not use
    transformers.utils.logging.set_verbosity_error()
    source, local = find_weights(model_path, "guidance.debias")
    # The folder may hold code: do not run it, and do not ask the user about it.
    options = {"local_files_only": local, "trust_remote_code": False}
    with readable(f"the language model {model_path}", "guidance.debias"), offline(local):
        about, _ = transformers.PretrainedConfig.get_config_dict(source, local_files_only=local)
        if about.get("model_type") not in MODEL_TYPES:
            raise ValueError(
                f"it is a {about.get('model_type')}, not one of {', '.join(MODEL_TYPES)}"
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        model = read_whole(transformers.AutoModelForMaskedLM, source, **options)
    ids = tokenizer.convert_tokens_to_ids(list(DIRECTIONS))
    if tokenizer.mask_token is None or any(i is None or i == tokenizer.unk_token_id for i in ids):
        raise UserError(
            f"guidance.debias {model_path} has no mask token or no single tokens for"
            f" {', '.join(DIRECTIONS)}: use a model like bert-base"
        )
    return tokenizer, model.eval()
