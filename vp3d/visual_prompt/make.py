"""The visual prompt: drawn from the text or given by the user, cut out, and put on a neutral ground.

Why cut out: with a coloured ground behind the object the distillation fills the volume with fog of that colour.

Conventions: pictures `[N, 3, H, W]` in [0, 1] sRGB, masks `[N, 1, H, W]` in [0, 1], 1 on the object. What is kept in the
run folder is exactly what is used (8 bits a channel), so a resumed run reads the same numbers back:
`candidate_<n>.png` as drawn, `chosen.png` the best of them as drawn, `cutout.png` on the neutral ground, `mask.png`,
`scores.json`, and `sheet.png` to look at.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vp3d.config.paths import expand
from vp3d.config.schema import Config, VisualPromptConfig
from vp3d.errors import UserError
from vp3d.prompts import phrases, strip_view, with_view
from vp3d.rewards.text_image import TextImage
from vp3d.runs.folder import RunFolder
from vp3d.system.files import atomic_write, write_json
from vp3d.types import to_uint8
from vp3d.visual_prompt.contact_sheet import contact_sheet
from vp3d.visual_prompt.cutout import (
    border_flood,
    is_usable,
    on_ground,
    read_picture,
    square_up,
    steadiness,
)

ALONE = (
    0.25  # how much of what a prompt's phrases score alone is taken off its own score, to choose
)
RAGGED = 0.03  # a drawn picture whose cut-out is less steady than the steadiest by more than this is not chosen
PLAIN = "give a picture of one object with a transparent or plain background"


class Sampler(Protocol):
    """The part of the prior that draws pictures."""

    def sample(
        self,
        prompts: list[str],
        negative: str,
        steps: int,
        guidance_scale: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Pictures `[N, 3, H, W]` in [0, 1]."""


@dataclass(frozen=True)
class VisualPrompt:
    """The chosen picture and how it was chosen.

    rgb        [1, 3, H, W] in [0, 1], on the neutral ground
    mask       [1, 1, H, W] in [0, 1], soft over one pixel
    candidates [N, 3, H, W] in [0, 1], as drawn (or the user's one picture, squared)
    scores     N text-image rewards of the cut-outs; None where the object could not be cut out
    chosen     index of the best, by reward less `ALONE` of `_alone`, among those that are cut out cleanly (`cutout.steadiness`)
    """

    rgb: Tensor
    mask: Tensor
    candidates: Tensor
    scores: list[float | None]
    chosen: int


def make_visual_prompt(
    prior: Sampler,
    judge: TextImage,
    prompt: str,
    config: Config,
    run_folder: RunFolder,
    generator: torch.Generator,
) -> VisualPrompt:
    """Draw (or read `config.image`), cut out, score, choose; keep everything in the run folder and return what was kept."""
    if config.image:
        candidates, masks = read_reference(config)
    else:
        candidates, masks = _draw(prior, prompt, config, generator)
    candidates, masks = _as_stored(candidates), _as_stored(masks)
    cutouts = on_ground(candidates, masks, config.visual_prompt.ground)
    scores = _score(judge, cutouts, masks, with_view(prompt, config.visual_prompt.view))
    steady = [
        1.0 if config.image else steadiness(rgb, config.visual_prompt.cutout_tolerance)
        for rgb in candidates
    ]
    usable = {n: score for n, score in enumerate(scores) if score is not None}
    least = max(
        config.visual_prompt.steadiness, max((steady[n] for n in usable), default=0.0) - RAGGED
    )
    clean = [n for n in usable if steady[n] >= least]
    if not clean:
        sheet = run_folder.visual_prompt / "sheet.png"
        labels = [
            f"steadiness {steady[n]:.2f}" if n in usable else "no cut-out"
            for n in range(len(scores))
        ]
        _write_png(contact_sheet(candidates, cutouts, labels, -1), sheet)
        raise UserError(
            f"none of the {len(candidates)} drawn pictures shows an object that stands out from its ground (see {sheet}); "
            "try another seed=N, more visual_prompt.candidates=N, another visual_prompt.cutout_tolerance=X or a lower "
            "visual_prompt.steadiness=X, or give a picture with --image"
        )
    alone = _alone(judge, cutouts, prompt, config.visual_prompt.view)
    chosen = max(clean, key=lambda n: usable[n] - ALONE * alone[n])
    found = VisualPrompt(
        _as_stored(cutouts[chosen : chosen + 1]),
        masks[chosen : chosen + 1],
        candidates,
        scores,
        chosen,
    )
    cut: dict[str, list[Any]] = {
        "alone": alone,
        "steadiness": steady,
        "ragged": sorted(set(usable) - set(clean)),
    }
    _keep(found, cutouts, cut, prompt, config, run_folder)
    return found


def load_visual_prompt(run_folder: RunFolder) -> VisualPrompt:
    """Read back what `make_visual_prompt` kept, bit for bit."""
    folder = run_folder.visual_prompt
    try:
        notes = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        names = [f"candidate_{n}.png" for n in range(len(notes["scores"]))]
        candidates = torch.cat([_read_png(folder / name) for name in names])
        rgb, mask = _read_png(folder / "cutout.png"), _read_png(folder / "mask.png")
        return VisualPrompt(rgb, mask, candidates, notes["scores"], int(notes["chosen"]))
    except (
        OSError,
        SyntaxError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
    ) as error:  # SyntaxError: Pillow on a bad PNG
        raise UserError(
            f"the visual prompt in {folder} is damaged ({type(error).__name__}): start a new run"
        ) from error


def drawing_prompt(prompt: str, settings: VisualPromptConfig) -> str:
    """What the prior is asked to draw: the prompt with view words and those for the drawing alone."""
    return ", ".join(filter(None, (with_view(prompt, settings.view), settings.words)))


def _draw(
    prior: Sampler, prompt: str, config: Config, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Candidates `[N, 3, H, W]` in [0, 1] from the prior, and their masks `[N, 1, H, W]`."""
    settings = config.visual_prompt
    drawn = prior.sample(
        [drawing_prompt(prompt, settings)] * settings.candidates,
        strip_view(config.negative_prompt),
        settings.steps,
        settings.guidance_scale,
        generator=generator,
    )
    drawn = drawn.detach().float().cpu().clamp(0.0, 1.0)
    return drawn, torch.stack([border_flood(rgb, settings.cutout_tolerance) for rgb in drawn])


def read_reference(config: Config) -> tuple[Tensor, Tensor]:
    """The user's picture as `[1, 3, R, R]` in [0, 1] with its mask `[1, 1, R, R]`, R the prior's resolution.

    UserError, one line, for a file that is no picture and for a picture without an object that can be cut out.
    """
    path = expand(config.image)
    rgb, alpha = read_picture(path)
    mask = border_flood(rgb, config.visual_prompt.cutout_tolerance) if alpha is None else alpha
    if not is_usable(mask):
        raise UserError(f"--image {path}: {_what_is_wrong(mask)}; {PLAIN}")
    rgb, mask = square_up(rgb, mask, config.prior.resolution)
    if not is_usable(_as_stored(mask)):
        raise UserError(
            f"--image {path}: the object is lost at {config.prior.resolution} pixels; {PLAIN}"
        )
    return rgb[None], mask[None]


def _what_is_wrong(mask: Tensor) -> str:
    if float(mask.mean()) > 0.5:
        return "the object cannot be told from its background (it seems to fill the whole picture)"
    return "no object stands out from the background"


@torch.no_grad()
def _score(judge: TextImage, cutouts: Tensor, masks: Tensor, prompt: str) -> list[float | None]:
    """The text-image reward of each cut-out `[N, 3, H, W]` in [0, 1]; None where its mask is empty or covers everything."""
    rewards = judge.score(cutouts.to(judge.device), judge.target([prompt]))
    return [float(r) if is_usable(mask) else None for r, mask in zip(rewards, masks, strict=True)]


@torch.no_grad()
def _alone(judge: TextImage, cutouts: Tensor, prompt: str, view: str) -> list[float]:
    """The mean reward of each cut-out `[N, 3, H, W]` in [0, 1] for the prompt's phrases alone; 0 where it is one phrase.

    A picture that lacks one of two things scores nearly as well as one of both, and better for the phrase of the one it has.
    """
    parts = [with_view(part, view) for part in phrases(prompt)]
    if not parts:
        return [0.0] * len(cutouts)
    seen = cutouts.to(judge.device)
    return torch.stack([judge.score(seen, judge.target([part])) for part in parts]).mean(0).tolist()


def _keep(
    found: VisualPrompt,
    cutouts: Tensor,
    cut: dict[str, list[Any]],
    prompt: str,
    config: Config,
    run_folder: RunFolder,
) -> None:
    folder = run_folder.visual_prompt
    pictures = {f"candidate_{n}.png": rgb for n, rgb in enumerate(found.candidates)}
    pictures |= {
        "chosen.png": found.candidates[found.chosen],
        "cutout.png": found.rgb[0],
        "mask.png": found.mask[0],
    }
    for name, rgb in pictures.items():
        _write_png(_to_pil(rgb), folder / name)
    labels = ["no cut-out" if score is None else f"{score:.3f}" for score in found.scores]
    labels = [f"{label} ragged" if n in cut["ragged"] else label for n, label in enumerate(labels)]
    _write_png(contact_sheet(found.candidates, cutouts, labels, found.chosen), folder / "sheet.png")
    source = config.image or "drawn"
    notes = {
        "prompt": prompt,
        "view": config.visual_prompt.view,
        "source": source,
        "ground": config.visual_prompt.ground,
    }
    write_json(
        folder / "scores.json", notes | cut | {"scores": found.scores, "chosen": found.chosen}
    )
    run_folder.event("visual_prompt", source=source, scores=found.scores, chosen=found.chosen)


def _as_stored(picture: Tensor) -> Tensor:
    """`picture` (any shape, in [0, 1]) with the values it has after a trip through an 8-bit file."""
    return (picture.clamp(0.0, 1.0) * 255.0).round() / 255.0


def _to_pil(picture: Tensor) -> Image.Image:
    """`[3, H, W]` or `[1, H, W]` in [0, 1] as an 8-bit picture."""
    values = to_uint8(picture)
    return Image.fromarray(values.squeeze(-1) if values.shape[-1] == 1 else values)


def _write_png(picture: Image.Image, path: Path) -> None:
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG")


def _read_png(path: Path) -> Tensor:
    """An 8-bit file of ours as `[1, C, H, W]` in [0, 1]."""
    with Image.open(path, formats=("PNG",)) as picture:
        values = np.array(picture)
    return (
        torch.from_numpy(values)
        .reshape(1, *values.shape[:2], -1)
        .permute(0, 3, 1, 2)
        .contiguous()
        .float()
        / 255.0
    )
