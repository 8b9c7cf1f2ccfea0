"""Pictures of a mesh as the 2D model would have them, and what of them a fit may use.

A render is noised to a strength and denoised again in a few guided steps under the words of its
view (SDEdit, Meng et al., arXiv 2108.01073; Instruct-NeRF2NeRF, arXiv 2303.12789, section 4.2).
Such pictures do not agree with each other. So before the mesh is fitted to them:

* Each is cut out. One whose silhouette overlaps that of the render by less than `LEAST_IOU` shows
  something else: the view keeps its own render, with a small weight.
* Shifts. Every silhouette is registered with its render. The part of the shifts that one movement
  of the object in space explains is an error of the mesh, so it stays; the rest is a disagreement
  between pictures and is taken back. Where it is small everywhere, nothing is moved.
* Brightness. The gain of each channel of a picture, relative to the mean gain of all, is taken back
  within `GAIN_LIMIT`; the mean gain stays.
* The chosen visual prompt replaces the front view, if their silhouettes agree after a shift and a
  change of scale.

Conventions: pictures are `[B, 3, S, S]` in [0, 1] over one grey; masks are `[B, 1, S, S]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from skimage.registration import phase_cross_correlation
from torch import Tensor

from vp3d.align.framing import box
from vp3d.config.schema import GuidanceConfig, Schedule
from vp3d.diffusion.prior import Prior
from vp3d.guidance.condition import Condition
from vp3d.guidance.vp_sds import Guidance
from vp3d.render.camera import camera_frame, focal_length
from vp3d.types import Camera
from vp3d.visual_prompt.cutout import border_flood, is_usable

LEAST_IOU = 0.6  # overlap of the silhouettes of a picture and its render
FRONT_IOU = 0.8  # overlap of the visual prompt and the front view
FRONT_ANGLE_DEG = 1.0  # azimuth up to which a view is a front view
OWN_WEIGHT = 0.1  # weight of a view that keeps its own render
SUBPIXEL = 16  # parts of a pixel that shifts are found in
STEADY = 0.2  # median disagreement, in pixels of 64, below which no picture is moved
FARTHEST = 0.06  # of the side: a picture that would be moved farther is not used
GAIN_LIMIT = 0.05  # largest change of the brightness of a picture

# (renders, cameras, strength in (0, 1), generator of the noise) -> pictures of the same shape
Teacher = Callable[[Tensor, Camera, float, torch.Generator], Tensor]


@dataclass(frozen=True)
class Front:
    """The chosen visual prompt.

    Attributes:
        rgb: `[1, 3, H, H]` in [0, 1].
        mask: `[1, 1, H, H]` in [0, 1].
    """

    rgb: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Targets:
    """What B views are fitted to.

    Attributes:
        rgb: `[B, 3, S, S]` in [0, 1], over the grey.
        mask: `[B, 1, S, S]` in [0, 1].
        weight: `[B]` in [0, 1].
    """

    rgb: Tensor
    mask: Tensor
    weight: Tensor


class Redraw:
    """The teacher of a run: the 2D model.

    Args:
        prior: Encodes, denoises and decodes.
        guidance: Guidance scales, and the view gate of the visual prompt.
        condition: The encoded prompts and the visual prompt.
        steps: Denoising steps from the strength to a clean picture.
        lam: Strength of the visual prompt in front; 0 for none.
    """

    def __init__(
        self,
        prior: Prior,
        guidance: GuidanceConfig,
        condition: Condition,
        steps: int,
        lam: float,
    ) -> None:
        self.prior, self.condition = prior, condition
        self.config = replace(guidance, denoise_steps=steps, lam=Schedule.constant(lam))

    @torch.no_grad()
    def __call__(
        self, rgb: Tensor, camera: Camera, strength: float, generator: torch.Generator
    ) -> Tensor:
        """Pictures `[B, 3, S, S]` in [0, 1] for renders of that shape from B cameras."""
        level = Schedule.constant(strength)
        guidance = Guidance(self.prior, replace(self.config, t_min=level, t_max=level))
        latents = self.prior.encode_images(rgb)
        estimate = guidance.estimate(latents, camera, self.condition, 0.0, generator)
        return guidance.decode_views(estimate.x0, rgb.shape[-2:])


def usable_targets(
    pictures: Tensor,
    own: Targets,
    camera: Camera,
    grey: float,
    tolerance: float,
    front: Front | None = None,
) -> Targets:
    """What a fit may use of the teacher's pictures (see the top of this module).

    Args:
        pictures: `[B, 3, S, S]`.
        own: The renders that the pictures were drawn from; their weights are not read.
        camera: The B cameras.
        grey: Level behind the pictures and the renders.
        tolerance: Colour distance to the border up to which a pixel is background.
        front: The visual prompt, if it is to be used.

    Returns:
        The targets, on the device of the pictures.
    """
    masks = torch.stack([border_flood(picture, tolerance) for picture in pictures.cpu()])
    masks = masks.to(pictures.device)
    overlap = iou(masks, own.mask)
    usable = torch.tensor([is_usable(mask) for mask in masks.cpu()], device=overlap.device)
    kept = usable & (overlap >= LEAST_IOU)
    pictures, masks, near = aligned(pictures, masks, own.mask, camera, grey, kept)
    kept = kept & near
    pictures = evened(pictures, masks, own, grey, kept)
    if front is not None:
        pictures, masks, overlap, kept = with_front(
            front, Targets(pictures, masks, overlap), own, camera, grey, kept
        )
    choice = kept[:, None, None, None]
    return Targets(
        torch.where(choice, pictures, own.rgb),
        torch.where(choice, masks, own.mask),
        torch.where(kept, overlap, torch.full_like(overlap, OWN_WEIGHT)),
    )


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union `[B]` of masks `[B, 1, S, S]`, cut at a half; 1 if both are empty."""
    first, second = (a > 0.5).flatten(1), (b > 0.5).flatten(1)
    union = (first | second).sum(1)
    return torch.where(union > 0, (first & second).sum(1) / union.clamp_min(1), 1.0)


def aligned(
    pictures: Tensor, masks: Tensor, reference: Tensor, camera: Camera, grey: float, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures without the shifts that no movement of the object explains.

    Args:
        pictures: `[B, 3, S, S]`.
        masks: Theirs.
        reference: Masks of the renders.
        camera: The B cameras.
        grey: Level behind the pictures.
        kept: Which views count `[B]` bool.

    Returns:
        Pictures and masks, moved; and which of all views are near enough to be moved `[B]` bool.
    """
    side = pictures.shape[-1]
    if int(kept.sum()) < 3:  # too few to tell a movement of the object from disagreement
        return pictures, masks, torch.ones_like(kept)
    shift = torch.zeros(len(kept), 2, dtype=torch.float64)
    for b in torch.nonzero(kept).flatten().tolist():
        found = phase_cross_correlation(
            masks[b, 0].cpu().numpy(),
            reference[b, 0].cpu().numpy(),
            upsample_factor=SUBPIXEL,
            normalization=None,
        )[0]
        shift[b] = torch.tensor([found[1], found[0]])  # of the picture against the render: x, y
    left = shift - explained(shift, camera, side, kept.cpu())
    left[~kept.cpu()] = 0.0
    length = left.norm(dim=1)
    if float(length[kept.cpu()].median()) < STEADY * side / 64.0:
        return pictures, masks, torch.ones_like(kept)
    near = (length <= FARTHEST * side).to(kept.device)
    left = left.to(pictures)
    moved = grey + shifted(pictures - grey, left)
    return moved, shifted(masks, left).clamp(0.0, 1.0), near


def explained(shift: Tensor, camera: Camera, side: int, kept: Tensor) -> Tensor:
    """The part `[B, 2]` of shifts `[B, 2]` in pixels that one movement of the object makes.

    It is the movement `[3]` with the least squared error over the kept views, as each camera sees
    it at the distance of the origin.
    """
    cpu = camera.to("cpu")
    right, up, _ = (axis.double() for axis in camera_frame(cpu))
    scale = (focal_length(cpu, side) / cpu.distance).double()[:, None]
    design = torch.stack([scale * right, -scale * up], 1)  # [B, 2, 3]
    rows, values = design[kept].reshape(-1, 3), shift[kept].reshape(-1, 1)
    movement = torch.linalg.lstsq(rows, values, driver="gelsd").solution
    return (design @ movement)[..., 0]


def shifted(values: Tensor, by: Tensor) -> Tensor:
    """`values [B, C, S, S]` moved back `by` pixels (x, y) `[B, 2]`; 0 comes in at the border."""
    theta = torch.eye(2, 3, device=values.device, dtype=values.dtype).repeat(len(values), 1, 1)
    theta[:, :, 2] = 2.0 * by / values.shape[-1]
    grid = F.affine_grid(theta, list(values.shape), align_corners=False)
    return F.grid_sample(values, grid, align_corners=False)


def evened(pictures: Tensor, masks: Tensor, own: Targets, grey: float, kept: Tensor) -> Tensor:
    """Pictures `[B, 3, S, S]` whose brightness relative to their renders is the same in all views.

    Args:
        pictures: Over the grey.
        masks: Theirs.
        own: The renders.
        grey: Level behind both.
        kept: Which views count `[B]` bool.
    """
    if not bool(kept.any()):
        return pictures
    both = masks * own.mask
    here = (pictures * both).sum((2, 3)).clamp_min(1.0e-3)
    there = (own.rgb * both).sum((2, 3)).clamp_min(1.0e-3)
    ratio = (there / here).log()
    gain = (ratio - ratio[kept].mean(0)).exp().clamp(1.0 - GAIN_LIMIT, 1.0 + GAIN_LIMIT)
    ground = grey * (1.0 - masks)
    return ((pictures - ground) * gain[:, :, None, None] + ground).clamp(0.0, 1.0)


def with_front(
    front: Front, found: Targets, own: Targets, camera: Camera, grey: float, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pictures with the visual prompt as the front view that it agrees with best.

    Args:
        front: The visual prompt.
        found: Pictures, their masks, and their overlaps with the renders.
        own: The renders.
        camera: The B cameras.
        grey: Level behind all.
        kept: Which views are used `[B]` bool.

    Returns:
        Pictures, masks, overlaps and which views are used.
    """
    pictures, masks, overlap = found.rgb.clone(), found.mask.clone(), found.weight.clone()
    kept = kept.clone()
    angle = ((camera.azimuth_deg + 180.0) % 360.0 - 180.0).abs()
    placed = []
    for b in torch.nonzero(angle <= FRONT_ANGLE_DEG).flatten().tolist():
        layers = fitted(front, own.mask[b : b + 1])
        if layers is not None:
            placed.append((float(iou(layers[:, 3:], own.mask[b : b + 1])), b, layers))
    if placed:
        best, b, layers = max(placed, key=lambda entry: entry[0])
        if best >= FRONT_IOU:
            pictures[b], masks[b] = layers[0, :3] + grey * (1.0 - layers[0, 3:]), layers[0, 3:]
            overlap[b], kept[b] = best, True
    return pictures, masks, overlap, kept


def fitted(front: Front, mask: Tensor) -> Tensor | None:
    """The visual prompt moved and scaled onto the box of a mask `[1, 1, S, S]`.

    Returns:
        Colours premultiplied by the mask, and the mask: `[1, 4, S, S]`. None if one of both shows
        nothing.
    """
    shown = front.mask[0, 0] > 0.5, mask[0, 0] > 0.5
    if not all(bool(one.any()) for one in shown):
        return None
    source, target = (box(one) for one in shown)
    scale = float((source[2:].prod() / target[2:].prod()).sqrt())
    y, x = ((2.0 * source[:2] - 1.0) - scale * (2.0 * target[:2] - 1.0)).tolist()
    theta = torch.tensor([[scale, 0.0, x], [0.0, scale, y]])
    layers = torch.cat([front.rgb * front.mask, front.mask], 1).to(mask)
    shape = [1, 4, mask.shape[-2], mask.shape[-1]]
    grid = F.affine_grid(theta[None].to(mask), shape, align_corners=False)
    return F.grid_sample(layers, grid, align_corners=False).clamp(0.0, 1.0)
