"""Tiny random reward models written in the published folder layouts. For tests only.

Pictures are 32 x 32. Weights depend on `seed` alone. ImageReward's vocabulary is the words of
tests/tiny_clip.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.helpers.tiny_clip import WORDS
from tests.helpers.tiny_models import tokenizer
from vp3d.rewards.blip import BlipSizes
from vp3d.rewards.imagereward import ImageRewardNet, score_head
from vp3d.system import torch_compat  # noqa: F401  (before transformers, which imports torchvision)

import transformers  # isort: skip

SIZE = 32
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]
BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
SIZES = BlipSizes(
    image_size=SIZE,
    patch_size=8,
    vision_width=128,
    vision_layers=2,
    text_width=64,
    text_layers=2,
    text_hidden=96,
    vocabulary=len(BERT_WORDS) + 2,
    positions=40,
)


def randomize(module: torch.nn.Module, seed: int) -> None:
    """Weights of a size that keeps the signal, so that outputs depend on every part."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        spread = (
            0.1
            if value.ndim < 2 or "embed" in name or "token" in name
            else 1.0 / value[0].numel() ** 0.5
        )
        centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        value.data = centre + spread * torch.randn(value.shape, generator=generator)


def published_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict as `ImageReward.pt` has it, with the parts of BLIP's pre-training that scoring
    does not use.
    """
    net = ImageRewardNet(SIZES)
    randomize(net, seed)
    unused = {
        "blip.vision_proj.weight": torch.zeros(8, 128),
        "blip.vision_proj.bias": torch.zeros(8),
        "blip.text_proj.weight": torch.zeros(8, 64),
        "blip.text_proj.bias": torch.zeros(8),
        "blip.text_encoder.embeddings.position_ids": torch.arange(40)[None],
    }
    return {key: value.detach() for key, value in net.state_dict().items()} | unused


def write_vocabulary(path: Path) -> Path:
    """BERT's vocabulary file with a few words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(BERT_WORDS) + "\n", encoding="utf-8")
    return path


def write_imagereward(folder: Path, seed: int = 0) -> Path:
    """A folder as `models fetch imagereward` makes it."""
    write_vocabulary(folder / "vocab.txt")
    save_file(published_state(seed), folder / "model.safetensors")
    return folder


def clip_config() -> transformers.CLIPConfig:
    """A tiny CLIP in transformers' classes, for the tokenizer of tests/tiny_models.py."""
    text = {
        "vocab_size": 190,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": 188,
        "eos_token_id": 189,
        "pad_token_id": 189,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": 8,
    }
    return transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=16, logit_scale_init_value=3.0
    )


def write_preprocessor(folder: Path, crop: object = SIZE) -> None:
    """The part of `preprocessor_config.json` that is read."""
    settings = {"crop_size": crop, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def write_clip_tower(folder: Path, seed: int = 0) -> Path:
    """A CLIPModel with its tokenizer, as PickScore is published."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.CLIPModel(clip_config())
    randomize(model, seed)
    model.logit_scale.data.fill_(3.0)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    write_preprocessor(folder, {"height": SIZE, "width": SIZE})
    return folder


def write_dino(folder: Path, seed: int = 0) -> Path:
    """A Dinov2Model made for 48 x 48 and, as the published ones, asked for less: its positions are
    interpolated.
    """
    config = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=48,
        patch_size=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.Dinov2Model(config)
    randomize(model, seed)
    model.save_pretrained(folder)
    write_preprocessor(folder)
    return folder


def write_aesthetic(folder: Path, seed: int = 0) -> Path:
    """A CLIP and the head, as `models fetch aesthetic` puts them together."""
    write_clip_tower(folder, seed)
    head = score_head(16)
    randomize(head, seed + 1)
    save_file(
        {f"layers.{key}": value.detach() for key, value in head.state_dict().items()},
        folder / "head.safetensors",
    )
    return folder
