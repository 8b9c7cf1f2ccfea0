"""Scores of pictures that need no model, by name: `(rgb [B, 3, H, W], B prompts) -> [B]`."""

from __future__ import annotations

from vp3d.align import framing
from vp3d.align.compress import jpeg_size, rate
from vp3d.align.objectives import PictureScore

WITH_GRADIENT: dict[str, PictureScore] = {
    "compress": lambda rgb, prompts: -rate(rgb),
    "framing": lambda rgb, prompts: framing.soft_framing(rgb),
    "colorful": lambda rgb, prompts: rgb.std(dim=1, unbiased=False).mean((1, 2)),
}
WITHOUT_GRADIENT: dict[str, PictureScore] = {
    "jpeg": lambda rgb, prompts: -jpeg_size(rgb),
    "whole": lambda rgb, prompts: framing.whole(rgb),
    "centred": lambda rgb, prompts: framing.centred(rgb),
    "filled": lambda rgb, prompts: framing.filled(rgb),
    "steady": lambda rgb, prompts: framing.steady(rgb),
    "plain": lambda rgb, prompts: framing.plain(rgb),
    "single": lambda rgb, prompts: -(framing.objects(rgb) - 1.0).abs(),
}
