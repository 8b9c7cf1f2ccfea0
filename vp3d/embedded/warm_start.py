"""Start a larger denoiser and text encoder from the weights of a smaller world.

The denoiser of the larger world has one more, outer level. Its inner levels have the shapes of the
smaller network's levels and start with their weights; whatever has another shape starts at random.
The sinusoids of the narrower time step are a subset of the wider's, so neighbouring columns of the
first time layer are summed. Words that both tokenizers know keep their embeddings.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vp3d.embedded import architectures

_DOWN = re.compile(r"down_blocks\.(\d+)\.")


def start_from(
    models: Path, unet: nn.Module, text: nn.Module, tokenizer: architectures.CLIPTokenizer
) -> None:
    """Copy the weights in the folder `models` where shapes agree, in place.

    Args:
        models: Folder of the smaller world's models.
        unet: The new denoiser, without image branch.
        text: The new text encoder.
        tokenizer: Of the new text encoder.
    """
    pipeline = models / "pipeline"
    old = load_file(pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    levels = 1 + max(int(m[1]) for m in map(_DOWN.match, old) if m)
    new = unet.state_dict()
    shift = 1 + max(int(m[1]) for m in map(_DOWN.match, new) if m) - levels
    renamed = {_shifted(key, shift): value.float() for key, value in old.items()}
    first = "time_embedding.linear_1.weight"
    renamed[first] = _narrowed(renamed[first], new[first].shape[1])
    same = {k: v for k, v in renamed.items() if k in new and v.shape == new[k].shape}
    unet.load_state_dict(new | same)
    _start_text(pipeline, text, tokenizer)


def _shifted(key: str, levels: int) -> str:
    """The key of a denoiser with `levels` more outer levels; the upper blocks count from inside."""
    return _DOWN.sub(lambda m: f"down_blocks.{int(m[1]) + levels}.", key)


def _narrowed(weight: Tensor, width: int) -> Tensor:
    """Columns of cosines and of sines summed to `width` in all."""
    halves = weight.unflatten(1, (2, width // 2, -1))
    return halves.sum(-1).flatten(1)


@torch.no_grad()
def _start_text(pipeline: Path, text: nn.Module, tokenizer: architectures.CLIPTokenizer) -> None:
    old = load_file(pipeline / "text_encoder" / "model.safetensors")
    known = architectures.CLIPTokenizer.from_pretrained(
        pipeline / "tokenizer", trust_remote_code=False
    ).get_vocab()
    new = text.state_dict()
    key = next(k for k in new if k.endswith("token_embedding.weight"))
    for word, number in tokenizer.get_vocab().items():
        if word in known:
            new[key][number] = old[key][known[word]]
    rest = {k: v for k, v in old.items() if k in new and k != key and v.shape == new[k].shape}
    text.load_state_dict(new | rest)
