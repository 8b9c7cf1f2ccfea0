"""Write trained models in the formats of diffusers, transformers and open_clip, and a manifest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from vp3d.diffusion.image_prompt import POOLED
from vp3d.embedded import architectures
from vp3d.system.files import atomic_write, read_json_object, write_json
from vp3d.weights.manifest import WEIGHT_SUFFIXES, file_entry
from vp3d.worlds.base import World
from vp3d.worlds.toybox.data import TOYBOX

ADAPTER_FILE = "ip-adapter_{world}.safetensors"
MADE_BY = (
    "python -m vp3d.embedded.train; its runs, and the steps taken by hand, are listed in"
    " docs/explanation/embedded_models.md"
)
# Names in a layer of the resampler: diffusers' and those of the published files
PUBLISHED = {
    "ln0": "0.norm1",
    "ln1": "0.norm2",
    "attn.to_q": "0.to_q",
    "attn.to_out.0": "0.to_out",
    "ff.0": "1.0",
    "ff.1.net.0.proj": "1.1",
    "ff.1.net.2": "1.3",
}
LAYER, KV = re.compile(r"layers\.(\d+)\.(.+)\.(\w+)"), "0.to_kv"


def save_pipeline(
    unet: nn.Module, text_encoder: nn.Module, tokenizer: Any, folder: Path, world: World = TOYBOX
) -> None:
    """Write a StableDiffusionPipeline folder; the UNet in float16.

    The autoencoder must be in `folder / "vae"` already.
    """
    plain = architectures.new_unet(world.sizes)
    state = {
        k.replace("add_embedding.text.", "add_embedding."): v for k, v in unet.state_dict().items()
    }
    plain.load_state_dict(
        {
            k: v
            for k, v in state.items()
            if ".processor." not in k and k != "add_embedding.image.weight"
        }
    )
    pipeline = architectures.StableDiffusionPipeline(
        vae=architectures.AutoencoderTiny.from_pretrained(folder / "vae"),
        text_encoder=text_encoder.cpu().float(),
        tokenizer=tokenizer,
        unet=plain.half(),
        scheduler=architectures.new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)


def save_adapter(
    unet: nn.Module, projection: nn.Module, folder: Path, world: World = TOYBOX
) -> None:
    """Write the IP-Adapter in the published layout, `models/ip-adapter_WORLD.safetensors`.

    In addition to the published keys the file has `pooled.weight`, the image's part in the time
    embedding (`image_prompt.PooledPrompt`).
    """
    tensors = {
        f"image_proj.{k}": v for k, v in published_resampler(projection.state_dict()).items()
    }
    tensors[POOLED] = unet.get_parameter("add_embedding.image.weight")
    processors: dict[str, Any] = unet.attn_processors  # type: ignore[assignment]
    for number, (name, processor) in enumerate(processors.items()):
        if name.endswith("attn2.processor"):
            tensors |= {f"ip_adapter.{number}.{k}": v for k, v in processor.state_dict().items()}
    (folder / "models").mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "models" / ADAPTER_FILE.format(world=world.name)) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary)


def published_resampler(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of diffusers' `IPAdapterPlusImageProjection` under the published names.

    The matrices of keys and values become one, [2D, C].
    """
    found = {}
    for key, value in state.items():
        layer = LAYER.fullmatch(key)
        if layer is None:
            found[key] = value
        elif layer[2] == "attn.to_k":
            found[f"layers.{layer[1]}.{KV}.weight"] = torch.cat(
                [value, state[key.replace("to_k", "to_v")]]
            )
        elif layer[2] != "attn.to_v":
            found[f"layers.{layer[1]}.{PUBLISHED[layer[2]]}.{layer[3]}"] = value
    return found


def resampler_state(published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `published_resampler`."""
    names, found = {v: k for k, v in PUBLISHED.items()}, {}
    for key, value in published.items():
        layer = LAYER.fullmatch(key)
        if layer is None:
            found[key] = value
        elif layer[2] == KV:
            for name, half in zip(("to_k", "to_v"), value.chunk(2), strict=True):
                found[f"layers.{layer[1]}.attn.{name}.weight"] = half
        else:
            found[f"layers.{layer[1]}.{names[layer[2]]}.{layer[3]}"] = value
    return found


def save_clip(
    model: nn.Module,
    tokenizer: Any,
    folder: Path,
    world: World = TOYBOX,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write an open_clip local-dir folder: configuration, weights as `dtype`, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {
        "size": world.sizes.resolution,
        "mode": "RGB",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    preprocess |= {"interpolation": "bilinear", "resize_mode": "squash"}
    write_json(
        folder / "open_clip_config.json",
        {
            "model_cfg": architectures.clip_config(tokenizer, world.sizes, world.name),
            "preprocess_cfg": preprocess,
        },
    )
    state = {
        k: v.detach().cpu().to(dtype if v.is_floating_point() else v.dtype).contiguous()
        for k, v in model.state_dict().items()
        if k != "attn_mask"
    }
    with atomic_write(folder / "open_clip_model.safetensors") as temporary:
        save_file(state, temporary)
    tokenizer.save_pretrained(folder)


def save_manifest(folder: Path, licence: str, figures: dict[str, Any] | None = None) -> None:
    """Write MANIFEST.json: the hashes of every weight and configuration file of `folder`.

    Args:
        folder: Of the models.
        licence: Of the models; "" if it is not known, which leaves it out.
        figures: Replace those of the same name that the manifest has; other figures stay.
    """
    path = folder / "MANIFEST.json"
    known = read_json_object(path) if path.exists() else {}
    listed = sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and (p.suffix in WEIGHT_SUFFIXES or p.suffix in (".json", ".txt"))
    )
    files = {str(p.relative_to(folder)): file_entry(p) for p in listed if p != path}
    write_json(
        path,
        {
            **({"licence": licence} if licence else {}),
            "made_by": MADE_BY,
            "torch": torch.__version__,
            "bytes": sum(int(e["bytes"]) for e in files.values()),
            "figures": known.get("figures", {}) | (figures or {}),
            "files": files,
        },
    )
