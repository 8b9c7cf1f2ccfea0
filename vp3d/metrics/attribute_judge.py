"""The judge: a small network that names objects, colours, pattern and relation in a picture.

It measures and is never optimised against. It shares nothing with the models that generate an
asset: it has another architecture and another seed, and is trained on the exact attributes of
rendered scenes. A folder holds `judge.safetensors` and `judge.json`:

    {"widths": [24, 48, 96, 192],
     "heads": {"object_a": ["sphere", ...], "color_a": [...], "relation": ["none", "on"]}}

This module has the network, its loss and its files; `vp3d.embedded` trains it.

Conventions: pictures are rgb `[B, 3, H, W]` in [0, 1] sRGB; the network sees 64 x 64, or as many
pixels as `"size"` says. The names of the heads and the order of their values are those of
`judge.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vp3d.errors import DamagedFileError, MissingWeightsError, in_one_line
from vp3d.system.files import JsonError, atomic_write, read_json_object, write_json
from vp3d.weights.manifest import verify_files

SIZE = 64  # pixels of a side of the network's input, if its file does not say it
WIDTHS = (24, 48, 96, 192)  # 55 MFLOP a picture
WEIGHTS, SPEC = "judge.safetensors", "judge.json"
# Limits of a `judge.json`: each stage halves the side of 64 pixels.
MAX_LAYERS, MAX_WIDTH, MAX_SIZE = 7, 1024, 512


class Block(nn.Module):
    """A residual block (He et al. 2016) that halves the side and changes the width."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width_out)
        self.shortcut = nn.Conv2d(width_in, width_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features `[B, C, H, W]` (any range) to `[B, C', H/2, W/2]` >= 0."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(F.avg_pool2d(x, 2)))


class Judge(nn.Module):
    """A residual network with one linear head for each attribute.

    A stem, residual stages that halve the side, then average and maximum over the picture.

    Args:
        heads: name of an attribute -> its values.
        widths: channels of the stem and of each stage.
        size: side S of the pictures, pixels.
    """

    def __init__(
        self,
        heads: Mapping[str, Sequence[str]],
        widths: Sequence[int] = WIDTHS,
        size: int = SIZE,
    ) -> None:
        super().__init__()
        self.size = size
        self.values: dict[str, list[str]] = {name: list(values) for name, values in heads.items()}
        self.widths = list(widths)
        self.stem = nn.Conv2d(12, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.Sequential(
            *(Block(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(2 * widths[-1], len(v)) for name, v in heads.items()}
        )

    def features(self, rgb: Tensor) -> Tensor:
        """Input of the heads, `[B, 2 * widths[-1]]` >= 0, of pictures `[B, 3, S, S]` in [0, 1].

        Raises:
            ValueError: the pictures have another shape.
        """
        if rgb.ndim != 4 or tuple(rgb.shape[1:]) != (3, self.size, self.size):
            raise ValueError(
                f"the judge takes rgb [B, 3, {self.size}, {self.size}], got {tuple(rgb.shape)}; "
                "judge_views resizes pictures"
            )
        x = F.pixel_unshuffle(rgb * 2.0 - 1.0, 2)  # [B, 12, S / 2, S / 2]
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.relu(self.norm(self.stem(x)))
        x = self.stages(x)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)

    def stage_features(self, rgb: Tensor) -> list[Tensor]:
        """Features `[B, C, h, w]` >= 0 of each stage, of pictures `[B, 3, H, H]` of any size.

        H is a multiple of 2 to the power of the number of stages plus one.
        """
        x = F.pixel_unshuffle(rgb * 2.0 - 1.0, 2).contiguous(memory_format=torch.channels_last)
        x, found = F.relu(self.norm(self.stem(x))), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, rgb: Tensor) -> dict[str, Tensor]:
        """Logits `[B, n]` over each head's n values, of pictures `[B, 3, S, S]` in [0, 1]."""
        x = self.features(rgb)
        return {name: head(x) for name, head in self.heads.items()}

    def targets(
        self, attributes: Sequence[Mapping[str, str]], device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Indices `[B]` (long) of named attributes for each head, for the training loss.

        Raises:
            KeyError: a head does not know a value.
        """
        found = {}
        for name, values in self.values.items():
            index = {value: i for i, value in enumerate(values)}
            indices = [index[named[name]] for named in attributes]
            found[name] = torch.tensor(indices, device=device)
        return found

    def name(self, logits: Mapping[str, Tensor]) -> list[dict[str, str]]:
        """The most likely value of each head for logits `[B, n]`; a dict for each of B pictures."""
        best = {name: logits[name].argmax(1).tolist() for name in self.values}
        count = len(next(iter(best.values())))
        return [
            {name: self.values[name][best[name][i]] for name in self.values} for i in range(count)
        ]


def judge_loss(
    logits: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    visible: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The training loss.

    Args:
        logits: for each head, `[B, n]`, any range.
        targets: for each head, indices `[B]`.
        visible: for each head, `[B]` in {0, 1}; 0 leaves out an attribute that its picture does not
            show. All count if None.

    Returns:
        The sum over the heads of the mean cross-entropy, a scalar >= 0.
    """
    losses = []
    for name, target in targets.items():
        each = F.cross_entropy(logits[name], target, reduction="none")
        weight = torch.ones_like(each) if visible is None else visible[name].to(each.dtype)
        losses.append((each * weight).sum() / weight.sum().clamp(min=1.0))
    return torch.stack(losses).sum()


@torch.no_grad()
def judge_views(judge: Judge, rgb: Tensor) -> list[dict[str, str]]:
    """What the judge names in each of B pictures `[B, 3, H, W]` in [0, 1].

    They are resized to the judge's size with antialiasing.
    """
    side = (judge.size, judge.size)
    if rgb.shape[-2:] != side:
        rgb = F.interpolate(rgb, side, mode="bilinear", antialias=True, align_corners=False).clamp(
            0.0, 1.0
        )
    was_training = judge.training
    judge.eval()
    try:
        return judge.name(judge(rgb))
    finally:
        judge.train(was_training)


def save_judge(judge: Judge, folder: Path) -> None:
    """Writes `judge.safetensors` and `judge.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / WEIGHTS) as temporary:
        state = {name: tensor.contiguous() for name, tensor in judge.state_dict().items()}
        save_file(state, temporary)
    size = {} if judge.size == SIZE else {"size": judge.size}
    write_json(folder / SPEC, {"widths": judge.widths, **size, "heads": judge.values})


def read_spec(path: Path) -> dict[str, Any]:
    """The content of a `judge.json`.

    Raises:
        MissingWeightsError: the file is missing.
        DamagedFileError: it is damaged, or does not describe a judge.
    """
    try:
        spec = read_json_object(path)
    except JsonError as error:
        if error.missing:
            raise MissingWeightsError(
                f"{path} is missing; restore it from the repository or retrain it"
            ) from error
        raise DamagedFileError(
            f"{path} cannot be read ({error.reason}); restore it from the repository"
        ) from error
    heads, widths = spec.get("heads"), spec.get("widths")
    has_heads = (
        isinstance(heads, dict)
        and len(heads) > 0
        and all(
            isinstance(values, list) and values and all(isinstance(name, str) for name in values)
            for values in heads.values()
        )
        and all(name.isidentifier() and not hasattr(nn.ModuleDict(), name) for name in heads)
    )
    has_widths = (
        isinstance(widths, list)
        and 2 <= len(widths) <= MAX_LAYERS
        and all(type(width) is int and 0 < width <= MAX_WIDTH for width in widths)
    )
    size = spec.setdefault("size", SIZE)
    has_size = type(size) is int and size in range(SIZE, MAX_SIZE + 1, SIZE)
    if not has_heads or not has_widths or not has_size:
        raise DamagedFileError(
            f"{path} does not describe a judge: it needs `widths` and `heads`; "
            "restore it from the repository"
        )
    return spec


def load_judge(folder: Path | str, manifest: Path | None = None) -> Judge:
    """Loads a trained judge.

    Args:
        folder: the folder with its two files.
        manifest: the manifest to check them against; None for no check.

    Returns:
        The judge in evaluation mode on the CPU, its weights frozen.

    Raises:
        MissingWeightsError: a file is missing.
        DamagedFileError: a file is damaged, or does not fit the other.
        UserError: `manifest` has another hash for a file.
    """
    folder = Path(folder)
    if manifest is not None:
        verify_files(manifest, folder)
    spec = read_spec(folder / SPEC)
    judge = Judge(spec["heads"], spec["widths"], spec["size"])
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise MissingWeightsError(
            f"{weights} is missing; restore it from the repository or retrain it"
        )
    try:
        judge.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        reason = in_one_line(error)
        raise DamagedFileError(
            f"{weights} is damaged or does not fit {SPEC} ({reason}); "
            "restore it from the repository"
        ) from error
    return judge.eval().requires_grad_(False)
