"""Names and shapes of the full-size reward models in transformers' classes, and of BERT.

On the meta device: what the library builds from the published configurations, against a plain
enumeration, and against the sizes of the files on the hub. HPSv2 is in test_towers.py, ImageReward
in test_imagereward.py, the priors and their adapters in diffusion/test_layouts.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.diffusion.test_layouts import Shapes, clip_layers, layer, shapes_of
from tests.helpers.tiny_rewards import write_dino
from vp3d.rewards.towers import load_dino
from vp3d.weights.catalogue import MODELS

import transformers  # isort: skip


DINO_NAMES = {  # of transformers 5, which reads and writes the published ones: those of the files
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}


def in_files(name: str) -> str:
    """The name in the published file of a tensor that DINOv2 calls `name`."""
    for ours, theirs in DINO_NAMES.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def published_clip(text: tuple[int, int], vision: tuple[int, int], projection: int) -> Shapes:
    """A CLIPModel with towers of (width, depth), patches of 14 in pictures of 224."""
    (wide, deep), (width, depth) = text, vision
    found = clip_layers("text_model", wide, deep) | layer("text_model.final_layer_norm", wide)
    found |= layer("text_model.embeddings.token_embedding", 49408, wide, bias=False)
    found |= layer("text_model.embeddings.position_embedding", 77, wide, bias=False)
    found |= clip_layers("vision_model", width, depth) | {
        "vision_model.embeddings.class_embedding": (width,),
        "logit_scale": (),
    }
    found |= layer("vision_model.pre_layrnorm", width) | layer("vision_model.post_layernorm", width)
    found |= layer("vision_model.embeddings.position_embedding", 257, width, bias=False)
    found |= layer("vision_model.embeddings.patch_embedding", width, 3, 14, 14, bias=False)
    found |= layer("visual_projection", projection, width, bias=False)
    return found | layer("text_projection", projection, wide, bias=False)


def published_dino() -> Shapes:
    """DINOv2 ViT-B/14, trained at 518 pixels."""
    found: Shapes = {"embeddings.cls_token": (1, 1, 768), "embeddings.mask_token": (1, 768)}
    found |= {"embeddings.position_embeddings": (1, 1 + 37**2, 768)} | layer("layernorm", 768)
    found |= layer("embeddings.patch_embeddings.projection", 768, 3, 14, 14)
    for i in range(12):
        block = f"encoder.layer.{i}"
        for part in DINO_NAMES.values():
            found |= layer(f"{block}.{part}", 768, 768)
        for n in (1, 2):
            found |= layer(f"{block}.norm{n}", 768) | {f"{block}.layer_scale{n}.lambda1": (768,)}
        found |= layer(f"{block}.mlp.fc1", 3072, 768) | layer(f"{block}.mlp.fc2", 768, 3072)
    return found


def published_bert() -> Shapes:
    """BERT base, uncased, with its masked-language head; norms have gamma and beta in the file."""
    found = layer("bert.embeddings.LayerNorm", 768)
    for name, count in (("word", 30522), ("position", 512), ("token_type", 2)):
        found |= layer(f"bert.embeddings.{name}_embeddings", count, 768, bias=False)
    for i in range(12):
        block = f"bert.encoder.layer.{i}"
        for part in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
        ):
            found |= layer(f"{block}.{part}", 768, 768)
        found |= layer(f"{block}.attention.output.LayerNorm", 768) | layer(
            f"{block}.output.LayerNorm", 768
        )
        found |= layer(f"{block}.intermediate.dense", 3072, 768) | layer(
            f"{block}.output.dense", 768, 3072
        )
    found |= layer("cls.predictions.transform.dense", 768, 768) | layer(
        "cls.predictions.transform.LayerNorm", 768
    )
    return found | {"cls.predictions.bias": (30522,)}


def sizes(width: int, depth: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
    }


def clip(text: tuple[int, int, int], vision: tuple[int, int, int], projection: int) -> nn.Module:
    towers = {"text_config": sizes(*text), "vision_config": sizes(*vision) | {"patch_size": 14}}
    towers = {name: tower | {"projection_dim": projection} for name, tower in towers.items()}
    return transformers.CLIPModel(transformers.CLIPConfig(**towers, projection_dim=projection))


# Name in the catalogue: what the library builds, the published layout, and the bytes of the file
# that are not parameters.
LAYOUTS: dict[str, tuple[Callable[[], nn.Module], Shapes, int]] = {
    "aesthetic": (
        lambda: clip((768, 12, 12), (1024, 24, 16), 768),
        published_clip((768, 12), (1024, 24), 768),
        8 * (77 + 257),  # position_ids
    ),
    "pickscore": (
        lambda: clip((1024, 24, 16), (1280, 32, 16), 1024),
        published_clip((1024, 24), (1280, 32), 1024),
        8 * (77 + 257),
    ),
    "dinov2-base": (
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(image_size=518, patch_size=14)),
        published_dino(),
        0,
    ),
    "bert-base": (
        lambda: transformers.BertForMaskedLM(transformers.BertConfig()),
        published_bert(),
        4 * (768 * 768 + 768 + 2 * 768 + 2),  # the pooler and the head of its other task
    ),
}


def test_dinov2_is_read_under_the_published_names(tmp_path: Path) -> None:
    state = load_file(write_dino(tmp_path) / "model.safetensors")
    assert {f"encoder.layer.1.{name}.weight" for name in DINO_NAMES.values()} < state.keys()
    inside = dict(load_dino(str(tmp_path)).model.named_parameters())
    assert {in_files(name) for name in inside} == state.keys()
    assert all(torch.equal(value, state[in_files(name)]) for name, value in inside.items())


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_full_size_model_has_the_published_layout(name: str) -> None:
    build, expected, more = LAYOUTS[name]
    with torch.device("meta"):
        model = build()
    # BERT's word embeddings under a second name.
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    found = {
        in_files(key) if name == "dinov2-base" else key: shape
        for key, shape in shapes_of(model).items()
        if key not in tied
    }
    assert found == expected
    payload = more + 4 * sum(torch.Size(shape).numel() for shape in expected.values())
    size = next(file.size for file in MODELS[name].files if file.path == "model.safetensors")
    if size % 1_000_000:  # exact
        assert 50 * len(expected) < size - payload < 200 * len(expected)
    else:
        assert abs(size - payload) < 0.001 * size
