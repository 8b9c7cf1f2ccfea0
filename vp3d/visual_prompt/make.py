"""The visual prompt: drawn by the prior or given by the user, cut out, over a neutral grey.

The object is cut out because distillation from a picture with a coloured background fills the
volume with fog of that colour.

Conventions: pictures are `[N, 3, H, W]` in [0, 1] sRGB; masks are `[N, 1, H, W]` in [0, 1], 1 on
the object. The folder `visual_prompt` of a run has the pictures that the run uses, in 8 bits per
channel. All values are rounded to 8 bits before they are used, so a resumed run reads the same
numbers back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vp3d.config.paths import expand
from vp3d.config.schema import VisualPromptConfig
from vp3d.errors import UserError
from vp3d.prompts import phrases, strip_view, with_view
from vp3d.rewards.text_image import TextImage
from vp3d.runs.folder import RunFolder
from vp3d.system.files import JsonError, atomic_write, read_json_object, write_json
from vp3d.types import to_uint8
from vp3d.visual_prompt.contact_sheet import contact_sheet, steering_sheet
from vp3d.visual_prompt.cutout import (
    border_flood,
    is_usable,
    over_grey,
    square_up,
    steadiness,
)
from vp3d.visual_prompt.reference import ADVICE, Cutout, cut_out

# Files in the folder `visual_prompt` of a run.
CHOSEN_FILE = "chosen.png"  # the chosen candidate, as drawn
CUTOUT_FILE = "cutout.png"  # its object over the neutral grey: the picture that the run uses
MASK_FILE = "mask.png"  # the mask of the object
SHEET_FILE = "sheet.png"  # the contact sheet of all candidates
STEERING_FILE = "steering.png"  # proposals and choices of the first candidate, if it was steered
SCORES_FILE = "scores.json"  # rewards, steadiness and choice; written last, so it marks completion

# Share of the mean reward for the prompt's phrases that is subtracted from a candidate's reward.
PHRASE_PENALTY = 0.25
# A candidate is rejected if its steadiness is lower than the best one's by more than this.
STEADINESS_MARGIN = 0.03


def candidate_file(n: int) -> str:
    """File name of candidate `n`, as drawn."""
    return f"candidate_{n}.png"


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
        """Draw one picture for each prompt.

        Args:
            prompts: N prompts.
            negative: The negative prompt of all pictures.
            steps: Denoising steps.
            guidance_scale: Scale of classifier-free guidance; 1 is plain conditioning.
            generator: Source of the noise.

        Returns:
            `[N, 3, H, W]` in [0, 1].
        """


@dataclass(frozen=True)
class VisualPromptRequest:
    """Which visual prompt to make.

    Attributes:
        prompt: The prompt of the run.
        negative_prompt: Its negative prompt, used to draw.
        image: Path of the user's picture; "" draws candidates instead.
        resolution: Side in pixels of the square visual prompt that `image` is fitted into: the
            prior's resolution.
        settings: How to draw, cut out and choose.
        mask: Path of the mask of `image`; "" finds the object in the picture.
    """

    prompt: str
    negative_prompt: str
    image: str
    resolution: int
    settings: VisualPromptConfig
    mask: str = ""


@dataclass(frozen=True)
class VisualPrompt:
    """The chosen picture and how it was chosen.

    Attributes:
        rgb: `[1, 3, H, W]` in [0, 1], over the neutral grey.
        mask: `[1, 1, H, W]` in [0, 1], soft over one pixel.
        candidates: `[N, 3, H, W]` in [0, 1], as drawn, or the user's one picture, squared.
        scores: N text-image rewards of the cut-outs; None for a candidate without a usable mask.
        chosen: Index of the chosen candidate (see `make_visual_prompt`).
        notes: What was noticed while the user's picture was read, one sentence each.
        warnings: Why the cut-out of the user's picture may be wrong, one sentence each.
    """

    rgb: Tensor
    mask: Tensor
    candidates: Tensor
    scores: list[float | None]
    chosen: int
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Choice:
    """How the candidates compare; every list has one value per candidate.

    Attributes:
        scores: Text-image reward of the cut-out, or None without a usable mask.
        steadiness: Of the cut-out, in [0, 1].
        clean: Indices of the candidates with a usable mask and a steady cut-out.
    """

    scores: list[float | None]
    steadiness: list[float]
    clean: list[int]

    @property
    def unsteady(self) -> list[int]:
        """Indices of the candidates with a usable mask but an unsteady cut-out."""
        usable = {n for n, score in enumerate(self.scores) if score is not None}
        return sorted(usable - set(self.clean))


def make_visual_prompt(
    prior: Sampler,
    reward: TextImage,
    request: VisualPromptRequest,
    run_folder: RunFolder,
    generator: torch.Generator,
) -> VisualPrompt:
    """Draw candidates or read the user's picture, cut out, score and choose.

    The chosen candidate has the highest text-image reward of its cut-out, minus `PHRASE_PENALTY`
    times its mean reward for the single phrases of the prompt, among the candidates with a usable
    mask and a steady cut-out. Files and an event are written to the run folder.

    Args:
        prior: Draws the candidates; not used if the request has an image.
        reward: The text-image reward that scores the candidates.
        request: Prompt, picture and settings.
        run_folder: Where the files are written.
        generator: Source of the noise of the drawing.

    Returns:
        The visual prompt with the values that `load_visual_prompt` reads back.

    Raises:
        UserError: The picture cannot be used, or no candidate has a clean cut-out.
    """
    settings = request.settings
    reference = None
    if request.image:
        reference = read_reference(request.image, request.mask, settings, request.resolution)
        candidates, masks = reference.rgb[None], reference.mask[None]
    else:
        candidates, masks = _draw(prior, request, generator)
    candidates, masks = _as_stored(candidates), _as_stored(masks)
    cutouts = over_grey(candidates, masks, settings.ground)
    scores = _score(reward, cutouts, masks, with_view(request.prompt, settings.view))
    # The user chose the picture, so its cut-out is not compared with others.
    steady = [
        1.0 if request.image else steadiness(rgb, settings.cutout_tolerance) for rgb in candidates
    ]
    choice = _Choice(scores, steady, _clean(scores, steady, settings.steadiness))
    if not choice.clean:
        _refuse(choice, candidates, cutouts, run_folder)
    phrase_scores = _phrase_scores(reward, cutouts, request.prompt, settings.view)
    values = {
        n: score - PHRASE_PENALTY * phrase_scores[n]
        for n, score in enumerate(scores)
        if score is not None
    }
    chosen = max(choice.clean, key=lambda n: values[n])
    rgb = _as_stored(cutouts[chosen : chosen + 1])
    visual_prompt = VisualPrompt(rgb, masks[chosen : chosen + 1], candidates, scores, chosen)
    if reference is not None:
        warnings = _doubts(reference, request.image, run_folder)
        visual_prompt = replace(visual_prompt, notes=reference.notes, warnings=warnings)
    labels = candidate_labels(scores, choice.unsteady)
    write_pictures(visual_prompt, cutouts, labels, run_folder)
    _write_scores(visual_prompt, choice, phrase_scores, request, run_folder)
    return visual_prompt


def load_visual_prompt(run_folder: RunFolder) -> VisualPrompt:
    """Read back the result of `make_visual_prompt`, bit for bit.

    Raises:
        UserError: A file is missing or damaged.
    """
    folder = run_folder.visual_prompt
    try:
        notes = read_json_object(folder / SCORES_FILE)
        names = [candidate_file(n) for n in range(len(notes["scores"]))]
        candidates = torch.cat([_read_png(folder / name) for name in names])
        rgb, mask = _read_png(folder / CUTOUT_FILE), _read_png(folder / MASK_FILE)
        return VisualPrompt(rgb, mask, candidates, notes["scores"], int(notes["chosen"]))
    # Pillow raises SyntaxError for a damaged PNG.
    except (
        *(JsonError, OSError, SyntaxError, ValueError, KeyError, TypeError, RuntimeError),
    ) as error:
        raise UserError(
            f"the visual prompt in {folder} is damaged ({type(error).__name__}): start a new run"
        ) from error


def drawing_prompt(prompt: str, settings: VisualPromptConfig) -> str:
    """The prompt for drawing: with view words, and with the words that are only for drawing."""
    return ", ".join(filter(None, (with_view(prompt, settings.view), settings.words)))


def read_reference(image: str, mask: str, settings: VisualPromptConfig, resolution: int) -> Cutout:
    """Read the user's picture and cut its object out: by `mask`, its alpha or its background.

    Args:
        image: Path of the picture; `~` is expanded.
        mask: Path of a picture that is white on the object; "" for none.
        settings: `cutout_tolerance` is used.
        resolution: Side R of the result in pixels.

    Returns:
        The object in a square picture `[3, R, R]` in [0, 1] with its mask `[1, R, R]`.

    Raises:
        UserError: A file is not a usable picture, or no object can be cut out of it.
    """
    path = expand(image)
    found = cut_out(path, settings.cutout_tolerance, expand(mask) if mask else None)
    rgb, layer = square_up(found.rgb, found.mask, resolution)
    if not is_usable(_as_stored(layer)):
        raise UserError(f"--image {path}: the object disappears at {resolution} pixels; {ADVICE}")
    return replace(found, rgb=rgb, mask=layer)


def _draw(
    prior: Sampler, request: VisualPromptRequest, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Candidates `[N, 3, H, W]` in [0, 1] from the prior, and their masks `[N, 1, H, W]`."""
    settings = request.settings
    drawn = prior.sample(
        [drawing_prompt(request.prompt, settings)] * settings.candidates,
        strip_view(request.negative_prompt),
        settings.steps,
        settings.guidance_scale,
        generator=generator,
    )
    drawn = drawn.detach().float().cpu().clamp(0.0, 1.0)
    return drawn, torch.stack([border_flood(rgb, settings.cutout_tolerance) for rgb in drawn])


def _doubts(reference: Cutout, image: str, run_folder: RunFolder) -> tuple[str, ...]:
    """What the user should check in the cut-out of `image`, before the run spends its time."""
    if not reference.doubts:
        return ()
    return (
        f"the cut-out of {image} may be wrong: {'; '.join(reference.doubts)}. Look at "
        f"{run_folder.visual_prompt / CUTOUT_FILE} and {MASK_FILE} next to it; if they are wrong, "
        "stop and give the object's mask with --mask FILE",
    )


@torch.no_grad()
def _score(reward: TextImage, cutouts: Tensor, masks: Tensor, prompt: str) -> list[float | None]:
    """The text-image reward of every cut-out `[N, 3, H, W]`; None where its mask is not usable."""
    values = reward.score(cutouts.to(reward.device), reward.target([prompt]))
    return [float(r) if is_usable(mask) else None for r, mask in zip(values, masks, strict=True)]


@torch.no_grad()
def _phrase_scores(reward: TextImage, cutouts: Tensor, prompt: str, view: str) -> list[float]:
    """The mean reward of every cut-out `[N, 3, H, W]` for the single phrases of the prompt.

    It is 0 for a prompt of one phrase. A picture that shows one of two objects has nearly the
    reward of one that shows both, and a higher one for the phrase of its object. Subtracting a
    share of this mean corrects for that.
    """
    parts = [with_view(part, view) for part in phrases(prompt)]
    if not parts:
        return [0.0] * len(cutouts)
    cutouts = cutouts.to(reward.device)
    scores = [reward.score(cutouts, reward.target([part])) for part in parts]
    return torch.stack(scores).mean(0).tolist()


def _clean(scores: list[float | None], steady: list[float], least: float) -> list[int]:
    """Indices of the candidates with a usable mask whose cut-out is steady.

    The limit is `least`, or `STEADINESS_MARGIN` below the steadiest usable candidate if higher.
    """
    usable = [n for n, score in enumerate(scores) if score is not None]
    best = max((steady[n] for n in usable), default=0.0)
    limit = max(least, best - STEADINESS_MARGIN)
    return [n for n in usable if steady[n] >= limit]


def _refuse(
    choice: _Choice, candidates: Tensor, cutouts: Tensor, run_folder: RunFolder
) -> NoReturn:
    """Write the contact sheet, and raise the UserError for candidates without a clean cut-out."""
    labels = [
        "no cut-out" if score is None else f"steadiness {steady:.2f}"
        for score, steady in zip(choice.scores, choice.steadiness, strict=True)
    ]
    sheet = run_folder.visual_prompt / SHEET_FILE
    _write_png(contact_sheet(candidates, cutouts, labels, -1), sheet)
    raise UserError(
        f"none of the {len(candidates)} drawn pictures shows an object that stands out from its "
        f"background (see {sheet}); try another seed=N, more visual_prompt.candidates=N, another "
        "visual_prompt.cutout_tolerance=X or a lower visual_prompt.steadiness=X, or give a picture "
        "with --image"
    )


def candidate_labels(scores: list[float | None], unsteady: list[int]) -> list[str]:
    """What the contact sheet says below each candidate."""
    labels = ["no cut-out" if score is None else f"{score:.3f}" for score in scores]
    return [f"{label} unsteady" if n in unsteady else label for n, label in enumerate(labels)]


def write_pictures(
    visual_prompt: VisualPrompt, cutouts: Tensor, labels: list[str], run_folder: RunFolder
) -> None:
    """Write the candidates, the chosen one, its cut-out and mask, and the contact sheet.

    Args:
        visual_prompt: The pictures.
        cutouts: The cut-out of every candidate, `[N, 3, H, W]` in [0, 1].
        labels: What the contact sheet says below each candidate.
        run_folder: Where the files are written.
    """
    folder = run_folder.visual_prompt
    pictures = {candidate_file(n): rgb for n, rgb in enumerate(visual_prompt.candidates)}
    pictures[CHOSEN_FILE] = visual_prompt.candidates[visual_prompt.chosen]
    pictures[CUTOUT_FILE] = visual_prompt.rgb[0]
    pictures[MASK_FILE] = visual_prompt.mask[0]
    for name, picture in pictures.items():
        _write_png(_to_pil(picture), folder / name)
    sheet = contact_sheet(visual_prompt.candidates, cutouts, labels, visual_prompt.chosen)
    _write_png(sheet, folder / SHEET_FILE)


def _write_scores(
    visual_prompt: VisualPrompt,
    choice: _Choice,
    phrase_scores: list[float],
    request: VisualPromptRequest,
    run_folder: RunFolder,
) -> None:
    """Write `scores.json`, which marks the visual prompt as complete, and the event."""
    source = request.image or "drawn"
    notes = {
        "prompt": request.prompt,
        "view": request.settings.view,
        "source": source,
        "ground": request.settings.ground,
        "alone": phrase_scores,
        "steadiness": choice.steadiness,
        "ragged": choice.unsteady,
        "scores": visual_prompt.scores,
        "chosen": visual_prompt.chosen,
    }
    if request.image:
        notes |= {"mask": request.mask, "warnings": list(visual_prompt.warnings)}
    write_json(run_folder.visual_prompt / SCORES_FILE, notes)
    run_folder.event(
        "visual_prompt", source=source, scores=visual_prompt.scores, chosen=visual_prompt.chosen
    )


def write_steering_sheet(
    pictures: Sequence[Tensor],
    values: Sequence[Sequence[float]],
    chosen: Sequence[int],
    steps: Sequence[int],
    folder: Path,
) -> None:
    """Write `steering.png` into the folder of a visual prompt; arguments of `steering_sheet`."""
    _write_png(steering_sheet(pictures, values, chosen, steps), folder / STEERING_FILE)


def _as_stored(picture: Tensor) -> Tensor:
    """`picture` (any shape, in [0, 1]) with its values rounded as in an 8-bit file."""
    return (picture.clamp(0.0, 1.0) * 255.0).round() / 255.0


def _to_pil(picture: Tensor) -> Image.Image:
    """`[3, H, W]` or `[1, H, W]` in [0, 1] as an 8-bit picture."""
    values = to_uint8(picture)
    return Image.fromarray(values.squeeze(-1) if values.shape[-1] == 1 else values)


def _write_png(picture: Image.Image, path: Path) -> None:
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG")


def _read_png(path: Path) -> Tensor:
    """An 8-bit file written by `_write_png` as `[1, C, H, W]` in [0, 1]."""
    with Image.open(path, formats=("PNG",)) as picture:
        values = np.array(picture)
    channels_last = torch.from_numpy(values).reshape(1, *values.shape[:2], -1)
    return channels_last.permute(0, 3, 1, 2).contiguous().float() / 255.0
