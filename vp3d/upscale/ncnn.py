"""Read a network in the format of ncnn into torch modules that have gradients.

A `.param` file lists the layers, one a line:

    type name inputs outputs input_blob ... output_blob ... key=value ...

A key below -23300 holds an array, `-23301=2,0.2,1.0` is the array of key 1. The `.bin` file holds
the weights of the layers in their order. A convolution has its weight behind a tag (0: float32,
0x01306B47: float16, padded to 4 bytes) and its bias as float32, a PReLU its slopes as float32.

Only the layers that the networks of Real-ESRGAN have are read. A name in the file is compared with
the list of known types and is never used otherwise; other types and options are refused. Nothing of
ncnn itself runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vp3d.errors import DamagedFileError

MAGIC = "7767517"
FLOAT32, FLOAT16 = 0, 0x01306B47  # tags of a weight
ARRAY = -23300  # keys below it hold arrays
MAX_LAYERS = 10_000
MAX_BYTES = 500_000_000  # of a .bin file
MAX_CHANNELS = 4096

Value = float | tuple[float, ...]


@dataclass(frozen=True)
class Layer:
    """One line of a .param file.

    Attributes:
        kind: the type, such as "Convolution".
        name: its name, for messages.
        inputs: names of the blobs that it reads.
        outputs: names of the blobs that it writes.
        options: key -> number or array.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: dict[int, Value]

    def number(self, key: int, default: float) -> float:
        """The number of a key; ValueError for an array."""
        value = self.options.get(key, default)
        if isinstance(value, tuple):
            raise ValueError(f"{self.name} has an array for key {key}")
        return value

    def whole(self, key: int, default: int) -> int:
        """The whole number of a key; ValueError for another one."""
        value = self.number(key, default)
        if value != int(value):
            raise ValueError(f"{self.name} has {value} for key {key}")
        return int(value)

    def array(self, key: int) -> tuple[float, ...]:
        """The array of a key; empty without one."""
        value = self.options.get(key, ())
        return value if isinstance(value, tuple) else (value,)

    def require(self, **allowed: tuple[int, ...]) -> None:
        """Refuse options that are not read: `require(k2=(0, 1))` lets key 2 be 0, 1 or absent."""
        for name, values in allowed.items():
            key = int(name.removeprefix("k"))
            if self.whole(key, values[0]) not in values:
                raise ValueError(f"{self.kind} {self.name} has {key}={self.options[key]}")


class Weights:
    """The bytes of a .bin file, read from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def tagged(self, count: int) -> Tensor:
        """`count` numbers behind a tag, as float32 `[count]`."""
        tag = int(np.frombuffer(self._take(4), "<u4")[0])
        if tag == FLOAT16:
            numbers = np.frombuffer(self._take(2 * count), "<f2")
            self._take(-2 * count % 4)
            return torch.from_numpy(numbers.astype(np.float32))
        if tag != FLOAT32:
            raise ValueError(f"weights with the tag {tag:#x} are not read")
        return self.plain(count)

    def plain(self, count: int) -> Tensor:
        """`count` numbers without a tag, float32 `[count]`."""
        return torch.from_numpy(np.frombuffer(self._take(4 * count), "<f4").astype(np.float32))

    def check_end(self) -> None:
        """Refuse a file that holds more than the layers need."""
        if self.at != len(self.data):
            raise ValueError(f"{len(self.data) - self.at} bytes are left after the last layer")

    def _take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise ValueError("the weights end too early")
        self.at += count
        return self.data[self.at - count : self.at]


class Convolution(nn.Module):
    """A convolution of stride 1 with zero padding, and its activation."""

    def __init__(self, layer: Layer, weights: Weights) -> None:
        super().__init__()
        layer.require(k2=(1,), k3=(1,), k5=(0, 1), k7=(1,), k8=(0,), k9=(0, 1, 2))
        out, side, size = layer.whole(0, 0), layer.whole(1, 0), layer.whole(6, 0)
        layer.require(k11=(side,), k12=(1,), k13=(1,))
        self.padding = layer.whole(4, 0)
        layer.require(k14=(self.padding,), k15=(self.padding,), k16=(self.padding,))
        if not (0 < out <= MAX_CHANNELS and 0 < side <= 16 and 0 <= self.padding < side):
            raise ValueError(f"{layer.name} has {out} channels, side {side}")
        inner, rest = divmod(size, out * side * side)
        if rest or not 0 < inner <= MAX_CHANNELS:
            raise ValueError(f"{layer.name} has {size} weights, which fit no convolution")
        self.weight = nn.Parameter(weights.tagged(size).reshape(out, inner, side, side))
        self.bias = nn.Parameter(weights.plain(out)) if layer.whole(5, 0) else None
        slopes = {0: 1.0, 1: 0.0, 2: (*layer.array(10), 0.0)[0]}
        self.slope = slopes[layer.whole(9, 0)]  # of negative values; 1 is no activation

    def forward(self, x: Tensor) -> Tensor:
        """`[B, out, H, W]` of x `[B, inner, H, W]`; any range."""
        x = F.conv2d(x, self.weight, self.bias, padding=self.padding)
        return x if self.slope == 1.0 else F.leaky_relu(x, self.slope)


class PRelu(nn.Module):
    """max(x, 0) + slope min(x, 0), one slope a channel."""

    def __init__(self, layer: Layer, weights: Weights) -> None:
        super().__init__()
        count = layer.whole(0, 0)
        if not 0 < count <= MAX_CHANNELS:
            raise ValueError(f"{layer.name} has {count} slopes")
        self.slope = nn.Parameter(weights.plain(count))

    def forward(self, x: Tensor) -> Tensor:
        """Shaped like x `[B, C, H, W]`."""
        return F.prelu(x, self.slope)


class Resize(nn.Module):
    """Nearest or bicubic resizing by a factor."""

    def __init__(self, layer: Layer, weights: Weights) -> None:
        super().__init__()
        layer.require(k0=(1, 3), k3=(0,), k4=(0,), k6=(0,))
        self.factor = layer.number(1, 1.0)
        if layer.number(2, 1.0) != self.factor or not 0.1 <= self.factor <= 16.0:
            raise ValueError(f"{layer.name} resizes by {self.factor}")
        self.mode = {1: "nearest", 3: "bicubic"}[layer.whole(0, 1)]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, factor H, factor W]` of x `[B, C, H, W]`."""
        corners = None if self.mode == "nearest" else False
        return F.interpolate(x, scale_factor=self.factor, mode=self.mode, align_corners=corners)


class Shuffle(nn.Module):
    """Depth to space: `[B, f^2 C, H, W]` to `[B, C, f H, f W]`."""

    def __init__(self, layer: Layer, weights: Weights) -> None:
        super().__init__()
        layer.require(k1=(0,))
        self.factor = layer.whole(0, 1)
        if not 1 <= self.factor <= 16:
            raise ValueError(f"{layer.name} shuffles by {self.factor}")

    def forward(self, x: Tensor) -> Tensor:
        """x `[B, f^2 C, H, W]`."""
        return F.pixel_shuffle(x, self.factor)


class WeightedSum(nn.Module):
    """The sum of the inputs, each times its coefficient."""

    def __init__(self, layer: Layer, weights: Weights) -> None:
        super().__init__()
        if layer.kind == "BinaryOp":
            layer.require(k0=(0,), k1=(0,))  # an addition of two blobs
            self.shares: tuple[float, ...] = (1.0,) * len(layer.inputs)
        else:
            if layer.whole(0, 0) != 1:
                raise ValueError(f"{layer.name} is no sum")
            self.shares = layer.array(1) or (1.0,) * len(layer.inputs)
        if len(self.shares) != len(layer.inputs):
            raise ValueError(f"{layer.name} has {len(self.shares)} coefficients")

    def forward(self, *parts: Tensor) -> Tensor:
        """Shaped like each part."""
        total = self.shares[0] * parts[0]
        for share, part in zip(self.shares[1:], parts[1:], strict=True):
            total = total + share * part
        return total


class Joined(nn.Module):
    """The inputs one after the other, along the channels."""

    def __init__(self, layer: Layer, weights: Weights) -> None:
        super().__init__()
        layer.require(k0=(0,))

    def forward(self, *parts: Tensor) -> Tensor:
        """`[B, sum of C, H, W]`."""
        return torch.cat(parts, dim=1)


class Copied(nn.Module):
    """The input itself; a Split writes it to several blobs."""

    def __init__(self, layer: Layer, weights: Weights) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """x."""
        return x


KINDS: dict[str, Callable[[Layer, Weights], nn.Module]] = {
    "Convolution": Convolution,
    "PReLU": PRelu,
    "Interp": Resize,
    "PixelShuffle": Shuffle,
    "BinaryOp": WeightedSum,
    "Eltwise": WeightedSum,
    "Concat": Joined,
    "Split": Copied,
}


class Net(nn.Module):
    """A network of layers with one input, of which the last layer's blob is the output."""

    def __init__(self, layers: Sequence[Layer], weights: Weights) -> None:
        super().__init__()
        if not layers or layers[0].kind != "Input" or len(layers[0].outputs) != 1:
            raise ValueError("the first layer is not an input")
        self.entry, self.layers = layers[0].outputs[0], list(layers[1:])
        known = {self.entry}
        for layer in self.layers:
            if layer.kind not in KINDS:
                raise ValueError(f"layers of the type {layer.kind[:40]} are not read")
            if not layer.inputs or not layer.outputs or not known.issuperset(layer.inputs):
                raise ValueError(f"{layer.name} reads a blob that no layer before it writes")
            known.update(layer.outputs)
        if not self.layers:
            raise ValueError("it has no layers")
        self.parts = nn.ModuleList(KINDS[layer.kind](layer, weights) for layer in self.layers)
        weights.check_end()
        # the last layer that reads each blob: it is let go after it
        self.last = {blob: n for n, layer in enumerate(self.layers) for blob in layer.inputs}

    def forward(self, x: Tensor) -> Tensor:
        """The output `[B, C', H', W']` of x `[B, C, H, W]`; differentiable."""
        blobs = {self.entry: x}
        for n, (layer, part) in enumerate(zip(self.layers, self.parts, strict=True)):
            found = part(*(blobs[name] for name in layer.inputs))
            for name in layer.inputs:
                if self.last[name] == n:
                    blobs.pop(name, None)
            blobs.update(dict.fromkeys(layer.outputs, found))
        result: Tensor = blobs[self.layers[-1].outputs[0]]
        return result


def read_param(text: str) -> list[Layer]:
    """The layers of a .param file.

    Raises:
        ValueError: it is not one.
    """
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if len(lines) < 3 or lines[0] != [MAGIC] or len(lines[1]) != 2:
        raise ValueError("it does not begin as a .param file of ncnn does")
    count = int(lines[1][0])
    if count != len(lines) - 2 or count > MAX_LAYERS:
        raise ValueError(f"it announces {count} layers and has {len(lines) - 2}")
    return [_read_layer(words) for words in lines[2:]]


def _read_layer(words: Sequence[str]) -> Layer:
    if len(words) < 4:
        raise ValueError(f"the line {' '.join(words)[:60]!r} is too short")
    reads, writes = int(words[2]), int(words[3])
    blobs = words[4 : 4 + reads + writes]
    if reads < 0 or writes < 0 or len(blobs) != reads + writes:
        raise ValueError(f"{words[1]} does not name its blobs")
    options: dict[int, Value] = {}
    for word in words[4 + reads + writes :]:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{words[1]} has the option {word[:40]!r}")
        number = int(key)
        if number <= ARRAY:
            size, *values = value.split(",")
            if int(size) != len(values):
                raise ValueError(f"{words[1]} has an array of another length")
            options[ARRAY - number] = tuple(float(v) for v in values)
        else:
            options[number] = float(value)
    return Layer(words[0], words[1], tuple(blobs[:reads]), tuple(blobs[reads:]), options)


def read_net(param: Path, weights: Path) -> Net:
    """The network of a .param and a .bin file, float32 on the CPU, with gradients.

    Raises:
        DamagedFileError: a file is missing, damaged or of another kind of network.
    """
    try:
        if weights.stat().st_size > MAX_BYTES:
            raise ValueError("it is too large")
        return Net(read_param(param.read_text(encoding="utf-8")), Weights(weights.read_bytes()))
    except (OSError, ValueError, OverflowError) as error:
        raise DamagedFileError(
            f"{param.name} and {weights.name} cannot be read as a network ({error}); install the "
            "package of the weights again"
        ) from error
