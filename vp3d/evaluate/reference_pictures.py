"""Synthetic reference pictures with exact masks: toybox renders on backgrounds that users have.

Conventions: colours are `[H, W, 3]` in [0, 1] sRGB, masks `[H, W]` in [0, 1], 1 on the object.
A render is composited as `rgb * mask + background * (1 - mask)`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from vp3d.worlds.toybox.images import render_spec
from vp3d.worlds.toybox.scenes import caption, sample_spec

SIDE = 256  # pixels


@dataclass(frozen=True)
class Sample:
    """One reference picture.

    Attributes:
        kind: The kind of background, a key of `KINDS`.
        caption: What the picture shows.
        file: The encoded picture, PNG or JPEG.
        suffix: ".png" or ".jpg".
        mask: The exact mask `[H, W]` in [0, 1].
    """

    kind: str
    caption: str
    file: bytes
    suffix: str
    mask: np.ndarray


@dataclass(frozen=True)
class Render:
    """An object: colours times mask `[H, W, 3]`, its mask `[H, W]`, and its caption."""

    premultiplied: np.ndarray
    mask: np.ndarray
    caption: str

    def over(self, background: np.ndarray) -> np.ndarray:
        """The object on a background `[H, W, 3]` or a colour `[3]`."""
        return self.premultiplied + (1.0 - self.mask)[..., None] * background


def make_samples(count: int, seed: int) -> list[Sample]:
    """`count` pictures for each of `KINDS`; every picture has its own generator."""
    return [
        make_sample(kind, np.random.default_rng([seed, number, index]))
        for number, kind in enumerate(KINDS)
        for index in range(count)
    ]


def make_sample(kind: str, rng: np.random.Generator) -> Sample:
    """One picture of `kind`, a key of `KINDS`."""
    return KINDS[kind](kind, rng)


def _render(rng: np.random.Generator, colour: str = "") -> Render:
    """A random toybox object, of a main colour if one is given, from a random side.

    The mask is the difference of the render on white and the one on black.
    """
    spec = sample_spec(rng)
    while colour and spec.color != colour:
        spec = sample_spec(rng)
    azimuth, elevation = [float(rng.uniform(-180, 180))], float(rng.uniform(-5, 40))
    black, white = (
        render_spec(spec, azimuth, elevation, ground, SIDE)[0] / 255.0 for ground in (0.0, 1.0)
    )
    return Render(black, 1.0 - (white - black).mean(-1), caption(spec))


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A backdrop's colour `[3]`: mostly light, sometimes any grey or any colour."""
    draw = rng.random()
    if draw < 0.5:
        return np.full(3, rng.uniform(0.85, 1.0)) + rng.uniform(-0.03, 0.0, 3)
    if draw < 0.75:
        return np.full(3, rng.uniform(0.2, 0.85))
    return rng.uniform(0.1, 0.95, 3)


def _separate(render: Render, rng: np.random.Generator) -> np.ndarray:
    """A backdrop's colour `[3]` that differs from the object's colours along its outline.

    Nobody can cut out what has exactly the colour of its background.
    """
    colours = [_colour(rng) for _ in range(20)]
    shares = [_hidden_share(render, colour) for colour in colours]
    return next(
        (c for c, share in zip(colours, shares, strict=True) if share < 0.02),
        colours[int(np.argmin(shares))],
    )


def _hidden_share(render: Render, colour: np.ndarray, least: float = 0.05) -> float:
    """The share of the object whose colour is closer than `least` to a backdrop's."""
    inside = render.mask > 0.99
    values = render.premultiplied[inside]
    return float((np.sqrt(((values - colour) ** 2).mean(-1)) < least).mean())


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels `[H, W]` in [-1, 1], y downwards."""
    axis = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    return axis[None].repeat(SIDE, 0), axis[:, None].repeat(SIDE, 1)


def _png(rgb: np.ndarray, alpha: np.ndarray | None = None) -> bytes:
    layers = rgb if alpha is None else np.concatenate([rgb, alpha[..., None]], -1)
    stream = io.BytesIO()
    Image.fromarray((layers.clip(0, 1) * 255).round().astype(np.uint8)).save(stream, format="PNG")
    return stream.getvalue()


def _jpeg(rgb: np.ndarray, quality: int) -> bytes:
    stream = io.BytesIO()
    picture = Image.fromarray((rgb.clip(0, 1) * 255).round().astype(np.uint8))
    picture.save(stream, format="JPEG", quality=quality)
    return stream.getvalue()


def _sample(kind: str, render: Render, rgb: np.ndarray) -> Sample:
    return Sample(kind, render.caption, _png(rgb), ".png", render.mask)


def _plain(kind: str, rng: np.random.Generator) -> Sample:
    render = _render(rng)
    return _sample(kind, render, render.over(_separate(render, rng)))


def _slope(render: Render, rng: np.random.Generator) -> np.ndarray:
    """A linear gradient `[H, W, 3]` between two shades of one colour."""
    x, y = _grid()
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * x + np.sin(angle) * y) / (abs(np.cos(angle)) + abs(np.sin(angle)))
    colour = _separate(render, rng)
    return (colour * (1.0 - rng.uniform(0.05, 0.25) * (ramp[..., None] + 1) / 2)).clip(0, 1)


def _gradient(kind: str, rng: np.random.Generator) -> Sample:
    render = _render(rng)
    return _sample(kind, render, render.over(_slope(render, rng)))


def _vignette(kind: str, rng: np.random.Generator) -> Sample:
    render = _render(rng)
    x, y = _grid()
    radius = (x - rng.uniform(-0.2, 0.2)) ** 2 + (y - rng.uniform(-0.2, 0.2)) ** 2
    shade = 1.0 - rng.uniform(0.1, 0.5) * (radius / 2.0) ** rng.uniform(0.8, 1.6)
    rgb = render.over(_separate(render, rng) * shade[..., None])
    file = _jpeg(rgb, int(rng.integers(88, 97)))
    return Sample(kind, render.caption, file, ".jpg", render.mask)


def _frame(kind: str, rng: np.random.Generator) -> Sample:
    """A line around the picture or along some of its sides, 1 to 5 pixels wide."""
    render = _render(rng)
    rgb = render.over(_separate(render, rng))
    colour = rng.choice([0.0, 0.5, 0.75, 1.0]) * np.ones(3) if rng.random() < 0.7 else rng.random(3)
    width = int(rng.integers(1, 6))
    sides = [True] * 4 if rng.random() < 0.6 else list(rng.random(4) < 0.5)
    for turns, chosen in enumerate(sides):
        if chosen:
            np.rot90(rgb, turns)[:width] = colour
    return _sample(kind, render, rgb)


def _letterbox(kind: str, rng: np.random.Generator) -> Sample:
    """Bars above and below, or at the left and right, that do not reach the object."""
    render = _render(rng)
    rgb, across = render.over(_separate(render, rng)), rng.random() < 0.3
    colour = 0.0 if rng.random() < 0.7 else rng.choice([0.06, 0.5, 1.0])
    pads = [int(v) for v in rng.integers(12, 70, 1)] * 2
    shape = ((0, 0), tuple(pads)) if across else (tuple(pads), (0, 0))
    bars = np.pad(rgb, (*shape, (0, 0)), constant_values=colour)
    return Sample(kind, render.caption, _png(bars), ".png", np.pad(render.mask, shape))


def _shadow(kind: str, rng: np.random.Generator) -> Sample:
    """A soft drop shadow on the floor under the object."""
    render = _render(rng)
    x, y = _grid()
    rows, columns = np.nonzero(render.mask > 0.5)
    centre = (columns.mean() + rng.uniform(-15, 15), rows.max() - rng.uniform(0, 8))
    wide = 0.5 * np.ptp(columns) * rng.uniform(0.8, 1.3)
    high = rng.uniform(6, 22)
    u, v = (x + 1) / 2 * SIDE - centre[0], (y + 1) / 2 * SIDE - centre[1]
    inside = ((u / wide) ** 2 + (v / high) ** 2 < 1).astype(float)
    blur = ndimage.gaussian_filter(inside, rng.uniform(3, 8))
    shade = 1.0 - rng.uniform(0.2, 0.6) * blur
    rgb = render.over(_separate(render, rng) * shade[..., None])
    file = _jpeg(rgb, 95) if rng.random() < 0.5 else _png(rgb)
    suffix = ".png" if file[:4] == b"\x89PNG" else ".jpg"
    return Sample(kind, render.caption, file, suffix, render.mask)


def _noise(kind: str, rng: np.random.Generator) -> Sample:
    """Sensor noise over object and background, of each channel or of all together."""
    render = _render(rng)
    rgb = render.over(_separate(render, rng))
    strength, channels = rng.uniform(0.01, 0.05), 3 if rng.random() < 0.5 else 1
    return _sample(kind, render, rgb + strength * rng.normal(size=(SIDE, SIDE, channels)))


def _jpeg_blocks(kind: str, rng: np.random.Generator) -> Sample:
    render = _render(rng)
    rgb = render.over(_separate(render, rng))
    file = _jpeg(rgb, int(rng.integers(30, 85)))
    return Sample(kind, render.caption, file, ".jpg", render.mask)


def _photograph(kind: str, rng: np.random.Generator) -> Sample:
    """An unsharp scene of several colours behind the object, with grain, as JPEG."""
    render = _render(rng)
    colours = np.zeros((2, 3))
    while np.abs(colours[0] - colours[1]).mean() < 0.15:
        colours = np.stack([_separate(render, rng) for _ in range(2)])
    total = np.zeros((SIDE, SIDE))
    for octave in range(3, 7):
        layer = rng.normal(size=(2**octave, 2**octave))
        total += ndimage.zoom(layer, SIDE / 2**octave, order=3) / 2**octave
    share = ((total - total.min()) / np.ptp(total))[..., None]
    texture = colours[0] * (1 - share) + colours[1] * share
    texture = ndimage.gaussian_filter(texture, (1.5, 1.5, 0))
    texture = texture + 0.015 * rng.normal(size=(SIDE, SIDE, 1))
    file = _jpeg(render.over(texture), 92)
    return Sample(kind, render.caption, file, ".jpg", render.mask)


def _touching(kind: str, rng: np.random.Generator) -> Sample:
    """A crop that cuts through the object, or just touches it, at one to three sides."""
    render = _render(rng)
    rows, columns = np.nonzero(render.mask > 0.5)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    cut = rng.uniform(0.0, 0.15) if rng.random() < 0.7 else 0.0
    high, wide = int(cut * (bottom - top)), int(cut * (right - left))
    sides = rng.permutation(4)[: int(rng.integers(1, 4))]
    box = [0, SIDE, 0, SIDE]
    edges = [top + high, bottom - high, left + wide, right - wide]
    for side in sides:
        box[side] = int(edges[side])
    rgb = render.over(_separate(render, rng))
    window = (slice(box[0], box[1]), slice(box[2], box[3]))
    return Sample(kind, render.caption, _png(rgb[window]), ".png", render.mask[window])


def _white(kind: str, rng: np.random.Generator) -> Sample:
    """A white or pale object on a white background, at least 5 of 255 apart."""
    while True:
        render = _render(rng, "white")
        if _hidden_share(render, np.ones(3), 5 / 255) < 0.01:
            return _sample(kind, render, render.over(np.ones(3)))


def _alpha(kind: str, rng: np.random.Generator) -> Sample:
    """An alpha channel that says little of the object, or is soft, faint or not quite empty."""
    render = _render(rng)
    colour, x_y = _separate(render, rng), _grid()
    variant = rng.integers(6)
    rgb, alpha = render.over(colour), render.mask
    straight = render.premultiplied / np.maximum(render.mask, 1e-3)[..., None]
    if variant == 0:  # a layer at 99 %
        alpha = np.full((SIDE, SIDE), rng.uniform(0.9, 0.995))
    elif variant == 1:  # rounded corners
        corner = rng.uniform(0.05, 0.2)
        out = np.maximum(np.abs(np.stack(x_y)) - (1 - corner), 0)
        alpha = ((out**2).sum(0) < corner**2).astype(float)
    elif variant == 2:  # a clean cut-out
        rgb = straight
    elif variant == 3:  # a soft edge with a black matte
        alpha = ndimage.gaussian_filter(render.mask, rng.uniform(1.0, 4.0))
        rgb = straight * alpha[..., None]
    elif variant == 4:  # half-transparent
        rgb, alpha = straight, render.mask * rng.uniform(0.3, 0.8)
    else:  # a residue everywhere
        rgb, alpha = straight, np.maximum(render.mask, rng.uniform(0.02, 0.1))
    return Sample(kind, render.caption, _png(rgb, alpha), ".png", render.mask)


KINDS: dict[str, Callable[[str, np.random.Generator], Sample]] = {
    "plain": _plain,
    "gradient": _gradient,
    "vignette": _vignette,
    "frame": _frame,
    "letterbox": _letterbox,
    "shadow": _shadow,
    "noise": _noise,
    "jpeg": _jpeg_blocks,
    "photograph": _photograph,
    "touching": _touching,
    "white": _white,
    "alpha": _alpha,
}
