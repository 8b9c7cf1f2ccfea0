"""LoRA: low-rank changes of a diffusion model's attention (Hu et al., arXiv 2106.09685).

    W x + scale * (alpha / rank) * B A x        A [rank, in], B [out, rank]

Files are in the format of diffusers (`pytorch_lora_weights.safetensors`, keys such as
`unet.down_blocks.0...to_q.lora_A.weight`); those of kohya's scripts and older layouts are read too.
A loader that ignores what it does not understand gives the base model without a word, so every
tensor of a file must find its matrix here, with the right shape. Files written here have
alpha = rank, because many programs ignore alpha.

Several adapters add up, each with its own scale; scale 0 is the base model bit for bit. Adapters
must be attached after `install_gates` (image_prompt.py) and before torch.compile. The caller passes
the networks by part: "unet", "text_encoder", "text_encoder_2" (`Prior.networks`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vp3d.errors import UserError
from vp3d.system import torch_compat  # noqa: F401  (before diffusers, which imports torchvision)
from vp3d.system.files import JsonError, atomic_write, parse_json
from vp3d.weights.lora_files import lora_file

DENOISER_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
PARTS = ("unet", "text_encoder", "text_encoder_2")
METADATA = "lora_adapter_metadata"  # where diffusers keeps the settings of peft
Networks = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Matrices:
    """The change of one layer: down [rank, in, ...], up [out, rank, ...] and alpha."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The number of rows of `down`."""
        return len(self.down)


def load_loras(networks: Networks, loras: Sequence[tuple[Path, float]]) -> list[str]:
    """Attach the files to frozen networks and activate them together.

    Args:
        networks: The networks by part.
        loras: File or folder of each LoRA, and its scale.

    Returns:
        The names of the adapters.

    Raises:
        UserError: a file is missing, damaged, or does not fit the networks.
    """
    names = []
    for i, (path, _) in enumerate(loras):
        name = f"lora{i}"
        _attach_file(networks, path, name)
        names.append(name)
    set_scales(networks, dict(zip(names, [scale for _, scale in loras], strict=True)))
    return names


def read_lora(path: Path, networks: Networks) -> dict[str, dict[str, Matrices]]:
    """The matrices of a file by part and path of the layer, every tensor of it accounted for.

    Args:
        path: A .safetensors file.
        networks: The networks that the file is for; nothing in them changes.

    Raises:
        UserError: the file is damaged, holds something else than LoRA, or does not fit.
    """
    tensors, metadata = _read(path)
    state, alphas = _to_peft(tensors, networks, path)
    pairs: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in state.items():
        match = re.fullmatch(r"(\w+?)\.(.+)\.lora_([AB])\.weight", key)
        if match is None or match[1] not in networks:
            raise _unplaced(path, key, networks)
        pairs.setdefault((match[1], match[2]), {})[match[3]] = tensor.float()
    found: dict[str, dict[str, Matrices]] = {}
    for (part, layer), pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise UserError(f"{path}: {part}.{layer} lacks one of its two matrices: fetch it again")
        if any(not matrix.numel() or matrix.ndim < 2 for matrix in pair.values()):
            raise UserError(f"{path}: {part}.{layer} has a matrix without numbers: fetch it again")
        alpha = alphas.get(f"{part}.{layer}", _alpha(metadata, part, layer, len(pair["A"])))
        matrices = Matrices(pair["A"], pair["B"], alpha)
        place, target = _layer(networks[part], layer)
        if target is None:
            raise _unplaced(path, f"{part}.{layer}", networks)
        _check_shape(path, f"{part}.{layer}", matrices, target)
        found.setdefault(part, {})[place] = matrices
    if not found:
        raise UserError(f"{path} contains no LoRA: nothing of it would change a picture")
    return found


def attach(
    networks: Networks, name: str, rank: int, generator: torch.Generator
) -> dict[str, nn.Parameter]:
    """Add a new adapter of the given rank to all attention layers; it changes nothing yet (B = 0).

    Args:
        networks: The networks by part.
        name: Name of the adapter.
        rank: Rows of A.
        generator: Draws A ~ N(0, 1 / rank^2).

    Returns:
        The trainable parameters in float32 by their keys in a file.
    """
    for part, network in networks.items():
        targets = DENOISER_TARGETS if part == "unet" else TEXT_TARGETS
        _inject(network, name, rank, list(targets), {})
    parameters: dict[str, nn.Parameter] = {}
    for key, layer in _layers(networks, name):
        down, up = layer.lora_A[name].float(), layer.lora_B[name].float()
        with torch.no_grad():
            drawn = torch.randn(down.weight.shape, generator=generator) / rank
            down.weight.copy_(drawn)
            up.weight.zero_()
        parameters[f"{key}.lora_A.weight"] = down.weight.requires_grad_()
        parameters[f"{key}.lora_B.weight"] = up.weight.requires_grad_()
    set_scales(networks, {name: 1.0})
    return parameters


def attach_trained(networks: Networks, name: str, path: Path) -> dict[str, nn.Parameter]:
    """Add the adapter of a file to be trained further; returns its parameters as `attach`.

    UserError for a file whose alpha is not its rank, which a saved file could not express.
    """
    _attach_file(networks, path, name)
    parameters: dict[str, nn.Parameter] = {}
    for key, layer in _layers(networks, name):
        if layer.lora_alpha[name] != layer.r[name]:
            raise UserError(f"{path}: alpha of {key} is not its rank: such a file is not tuned")
        for letter, matrix in (("A", layer.lora_A[name]), ("B", layer.lora_B[name])):
            parameters[f"{key}.lora_{letter}.weight"] = matrix.weight.requires_grad_()
    set_scales(networks, {name: 1.0})
    return parameters


def set_scales(networks: Networks, scales: Mapping[str, float]) -> None:
    """Activate exactly these adapters with these scales; no scales give the base model."""
    for _, layer in _layers(networks):
        present = [name for name in scales if name in layer.lora_A]
        trainable = [p for p in layer.parameters() if p.requires_grad]
        layer.set_adapter(present)  # peft changes which parameters are trained
        for parameter in layer.parameters():
            parameter.requires_grad_(any(parameter is other for other in trainable))
        for name in present:
            layer.set_scale(name, scales[name])


@contextmanager
def adapters_off(networks: Networks) -> Iterator[None]:
    """The base model for the time of a `with` block."""
    layers = [layer for _, layer in _layers(networks)]
    for layer in layers:
        layer._disable_adapters = True  # enable_adapters() would also stop the training
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def save_lora(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Write a file in diffusers' format, atomically.

    Args:
        path: The .safetensors file.
        tensors: The matrices by the keys of `attach`, alpha = rank.
        notes: JSON that is kept in the header under "vp3d": base model, rewards, steps.
    """
    from peft import LoraConfig

    parts = {key.partition(".")[0] for key in tensors}
    settings: dict[str, Any] = {}
    for part in sorted(parts):
        rank = next(len(v) for k, v in tensors.items() if k.startswith(part) and ".lora_A." in k)
        targets = DENOISER_TARGETS if part == "unet" else TEXT_TARGETS
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(targets)).to_dict()
        kept = ("r", "lora_alpha", "target_modules", "lora_dropout", "bias", "peft_type")
        settings |= {f"{part}.{key}": _plain(config[key]) for key in kept}
    header = {
        "format": "pt",
        METADATA: json.dumps(settings, sort_keys=True),
        "vp3d": json.dumps(notes, sort_keys=True),
    }
    weights = {key: value.detach().float().cpu().contiguous() for key, value in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(weights, temporary, metadata=header)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else getattr(value, "value", value)


def _attach_file(networks: Networks, path: Path, name: str) -> None:
    file = lora_file(path)
    for part, layers in read_lora(file, networks).items():
        ranks = {layer: matrices.rank for layer, matrices in layers.items()}
        _inject(networks[part], name, min(ranks.values()), list(layers), ranks)
        for place, matrices in layers.items():
            layer: Any = networks[part].get_submodule(place)
            with torch.no_grad():
                layer.lora_A[name].float().weight.copy_(matrices.down)
                layer.lora_B[name].float().weight.copy_(matrices.up)
            layer.lora_alpha[name] = matrices.alpha
    for _, layer in _layers(networks, name):
        layer.lora_A[name].requires_grad_(False)
        layer.lora_B[name].requires_grad_(False)


def _inject(
    network: nn.Module, name: str, rank: int, targets: list[str], ranks: Mapping[str, int]
) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    pattern = {re.escape(layer): value for layer, value in ranks.items()}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, rank_pattern=pattern)
    with torch.random.fork_rng(devices=[]):  # peft draws weights that are replaced
        inject_adapter_in_model(config, network, name)


def _layers(networks: Networks, name: str = "") -> list[tuple[str, Any]]:
    """(part.path, layer) of the layers with adapters, or with the adapter `name`."""
    return [
        (f"{part}.{path}", layer)
        for part, network in networks.items()
        for path, layer in network.named_modules()
        if hasattr(layer, "lora_A") and (not name or name in layer.lora_A)
    ]


def _layer(network: nn.Module, path: str) -> tuple[str, nn.Module | None]:
    """A layer by its path in a file, and its path in the network; None without one.

    Text encoders of newer transformers have no level "text_model".
    """
    for place in (path, path.removeprefix("text_model."), f"text_model.{path}"):
        try:
            layer = network.get_submodule(place)
        except AttributeError:
            continue
        layer = getattr(layer, "base_layer", layer)
        return place, layer if isinstance(layer, nn.Linear | nn.Conv2d) else None
    return path, None


def _check_shape(path: Path, key: str, matrices: Matrices, layer: nn.Module) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    rank = matrices.rank
    down = (rank, *weight.shape[1:])
    up = (len(weight), rank, *(1,) * (weight.ndim - 2))
    if tuple(matrices.down.shape) != down or tuple(matrices.up.shape) != up:
        raise UserError(
            f"{path}: {key} is for a layer of another size than this model's "
            f"{tuple(weight.shape)}: use a LoRA that was trained on this model"
        )


def _unplaced(path: Path, key: str, networks: Networks) -> UserError:
    return UserError(
        f"{path}: this model has no place for its tensor {key} (parts: {', '.join(networks)}); "
        "use a LoRA that was trained on this model"
    )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = parse_json(header.get(METADATA, "{}"))
    except (JsonError, OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not a readable LoRA ({error}): fetch it again") from error
    finite = {key: bool(value.float().isfinite().all()) for key, value in tensors.items()}
    bad = next((key for key, found in finite.items() if not found), None)
    if bad is not None:
        raise UserError(f"{path}: {bad} has numbers that are not finite: fetch it again")
    return tensors, metadata if isinstance(metadata, dict) else {}


def _to_peft(
    tensors: dict[str, Tensor], networks: Networks, path: Path
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Keys of any known layout as `part.layer.lora_A.weight`, and alphas by `part.layer`."""
    if all(".lora_A." in key or ".lora_B." in key for key in tensors):
        return tensors, {}
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

    strange = next((key for key in tensors if "lora" not in key and "alpha" not in key), None)
    if strange is not None or any("dora_scale" in key for key in tensors):
        raise UserError(f"{path} has {strange or 'a DoRA'}, which is no LoRA: only LoRA is read")
    config = getattr(networks["unet"], "config", None)
    try:
        state, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
            dict(tensors), unet_config=config
        )
        found = {key.removesuffix(".alpha"): value for key, value in (alphas or {}).items()}
        scales = _renamed(found).items()
        return _renamed(state), {_stem(key): float(value) for key, value in scales}
    except Exception as error:  # the converters raise many types for unknown layouts
        raise UserError(f"{path} has an unknown layout ({error}): save it by diffusers") from error


def _renamed(state: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of diffusers' older layouts in that of peft; values are kept."""
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    denoiser = {key: value for key, value in state.items() if key.startswith("unet.")}
    found = convert_unet_state_dict_to_peft(denoiser) if denoiser else {}
    text = {_text_key(key): v for key, v in state.items() if not key.startswith("unet.")}
    return {**found, **text}


def _text_key(key: str) -> str:
    """A key of a text encoder's older layouts in that of peft."""
    layer = re.sub(r"\.to_([qkv])_lora\.", r".\1_proj.lora.", key)
    layer = layer.replace(".to_out_lora.", ".out_proj.lora.").replace(
        ".lora_linear_layer.", ".lora."
    )
    down = layer.replace(".lora.down.weight", ".lora_A.weight")
    return down.replace(".lora.up.weight", ".lora_B.weight")


def _stem(key: str) -> str:
    """The path of the layer in a key of peft."""
    return re.sub(r"\.lora_[AB]\.weight$", "", key)


def _alpha(metadata: Mapping[str, Any], part: str, layer: str, rank: int) -> float:
    """Alpha by the metadata of diffusers; without any it is the rank.

    A file of rank-stabilised LoRA (arXiv 2312.03732) is scaled by alpha / sqrt(rank), so its alpha
    is larger by sqrt(rank) here.
    """
    scale = math.sqrt(rank) if metadata.get(f"{part}.use_rslora") is True else 1.0
    by_layer = metadata.get(f"{part}.alpha_pattern")
    if isinstance(by_layer, Mapping):
        for pattern, value in by_layer.items():
            if (layer == pattern or layer.endswith(f".{pattern}")) and isinstance(
                value, int | float
            ):
                return scale * value
    value = metadata.get(f"{part}.lora_alpha", rank)
    return scale * value if isinstance(value, int | float) else float(rank)
