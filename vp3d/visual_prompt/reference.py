"""Cut the object out of a picture that the user gives, and say where the result is doubtful.

Conventions: one picture is `[3, H, W]` in [0, 1] sRGB, a mask `[1, H, W]` in [0, 1], 1 on the
object. Drawn candidates are cut out in `cutout`, not here: they are always objects on a plain
background, and a run must keep its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vp3d.errors import UserError
from vp3d.upscale.network import FACTOR, enlarge
from vp3d.upscale.realesrgan import load_realesrgan, weights_folder
from vp3d.visual_prompt.alpha import card_inside, square_in_disc, usable_alpha, without_matte
from vp3d.visual_prompt.cutout import border_flood, is_usable
from vp3d.visual_prompt.doubts import alpha_doubts, card_doubts, pieces_note, shape_doubts
from vp3d.visual_prompt.read import Picture, read_picture
from vp3d.visual_prompt.separate import overlap, separate

ADVICE = "give a picture of one object with a transparent or plain background, or --mask FILE"
SMALL_SIDE = 64  # pixels of the longer side below which a picture is enlarged, if it can be
STEADY = 0.96  # a steadiness from which the cut-out is not worth a warning
LEAST_STEADY = 0.6  # a steadiness below which the picture is refused
MOST_ASPECT = 0.02  # by how much the proportions of picture and mask may differ
CARD_BORDER = 0.97  # share of a card's border that must show its background
DISC_BORDER = 0.6  # the same for the square inside a disc, which is nearer to the object
CARD_COVER = (0.005, 0.8)  # share of a card that its object takes up
SAME_MASK = 0.99  # intersection over union from which two masks are the same
LARGE_COVER = 0.7  # share of the picture from which a found object is doubtful


@dataclass(frozen=True)
class Cutout:
    """The object of a user's picture.

    Attributes:
        rgb: `[3, H, W]` in [0, 1].
        mask: `[1, H, W]` in [0, 1], 1 on the object.
        steadiness: How little the mask depends on its tolerances, in [0, 1]; 1 if alpha or a file
            gave the mask.
        doubts: Why the mask may be wrong, one clause each.
        notes: What else a user may want to know, one sentence each.
    """

    rgb: Tensor
    mask: Tensor
    steadiness: float = 1.0
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def cut_out(path: Path, tolerance: float, mask_path: Path | None = None) -> Cutout:
    """Read a picture and find its object: by the mask file, by its alpha, else by its backdrop.

    Args:
        path: The picture.
        tolerance: Largest colour distance in [0, 1] that counts as background.
        mask_path: A picture of the same proportions, white or opaque on the object.

    Returns:
        The object, with the doubts that the user should read.

    Raises:
        UserError: A file cannot be used, or no object can be separated from its background.
    """
    picture = enlarged(read_picture(path))
    if mask_path is not None:
        mask = read_mask(mask_path, picture)
        doubts = tuple(f"--mask: {doubt}" for doubt in shape_doubts(mask[0].double().numpy()))
        return Cutout(picture.rgb, mask, doubts=doubts, notes=picture.notes)
    found = cut_out_picture(picture, tolerance)
    if not is_usable(found.mask):
        raise UserError(f"--image {path}: {_unusable_reason(found.mask)}; {_advice(picture)}")
    if found.steadiness < LEAST_STEADY:
        raise UserError(
            f"--image {path}: the object cannot be separated from its background safely (the "
            f"cut-outs at neighbouring tolerances agree by {found.steadiness:.0%} only); {ADVICE}"
        )
    return found


def enlarged(picture: Picture) -> Picture:
    """A picture of less than `SMALL_SIDE` pixels enlarged by Real-ESRGAN, with a note.

    Without the extra `vp3d[upscale]`, and for larger pictures, the picture itself.
    """
    height, width = picture.rgb.shape[-2:]
    if max(height, width) >= SMALL_SIDE or weights_folder() is None:
        return picture
    rgb, alpha = enlarge(picture.rgb, picture.alpha, load_realesrgan())
    note = (
        f"the picture has only {width} x {height} pixels; Real-ESRGAN made it {FACTOR} times larger"
    )
    return replace(picture, rgb=rgb, alpha=alpha, notes=(*picture.notes, note))


def cut_out_picture(picture: Picture, tolerance: float) -> Cutout:
    """The object of a picture, whether its mask is usable or not; see `cut_out`."""
    alpha = None if picture.alpha is None else usable_alpha(picture.alpha[0].double().numpy())
    values = picture.rgb.permute(1, 2, 0).double().numpy()
    if alpha is None:
        return _by_backdrop(values, tolerance, picture)
    card, disc = card_inside(alpha), square_in_disc(alpha)
    mask = None if card is None else _clear_object(picture, card, tolerance, CARD_BORDER)
    if mask is not None:
        doubt = "its alpha channel outlines a card, of which the object inside is used"
        return _cutout(values, mask, picture, 1.0, (doubt,))
    alpha_found = [*alpha_doubts(alpha), *shape_doubts(alpha)]
    inner = None if disc is None else _clear_object(picture, disc, tolerance, DISC_BORDER)
    if inner is not None:
        alpha_found.append("its alpha channel outlines a disc that shows an object inside")
    rgb, alpha = without_matte(values, alpha)
    return _cutout(rgb, alpha, picture, 1.0, tuple(alpha_found))


def _clear_object(
    picture: Picture, part: tuple[slice, slice], tolerance: float, least_border: float
) -> np.ndarray | None:
    """The mask `[H, W]` of a clear object on a plain background in a part of the picture.

    Args:
        picture: The picture.
        part: Rows and columns of the part.
        tolerance: Largest colour distance that counts as background.
        least_border: Share of the part's border that shows the background, at least.
    """
    values = picture.rgb.permute(1, 2, 0).double().numpy()
    inner = separate(np.ascontiguousarray(values[part]), tolerance, picture.lossy)
    clear = inner.steadiness > STEADY and inner.border > least_border and not inner.doubts
    if not clear or not CARD_COVER[0] < inner.mask.mean() < CARD_COVER[1]:
        return None
    mask = np.zeros(values.shape[:2])
    mask[part] = inner.mask
    return mask


def read_mask(path: Path, picture: Picture) -> Tensor:
    """The mask in a file, in the size of `picture`: by its alpha, else by its lightness.

    Returns:
        `[1, H, W]` in [0, 1].

    Raises:
        UserError: The file cannot be read, has other proportions, or marks nothing or everything.
    """
    found = read_picture(path, "--mask")
    height, width = picture.rgb.shape[1:]
    own_height, own_width = found.rgb.shape[1:]
    if abs(own_width / own_height * height / width - 1.0) > MOST_ASPECT:
        raise UserError(
            f"--mask {path} has the proportions {own_width}:{own_height}, the picture "
            f"{width}:{height}: save it in the size of the picture"
        )
    mask = found.rgb.mean(0, keepdim=True) if found.alpha is None else found.alpha
    mask = F.interpolate(
        mask[None], (height, width), mode="bilinear", align_corners=False, antialias=True
    )[0].clamp(0.0, 1.0)
    if not is_usable(mask):
        raise UserError(
            f"--mask {path} marks {'nearly everything' if mask.mean() > 0.5 else 'nothing'}: "
            "paint the object white and the background black"
        )
    return mask


def _by_backdrop(values: np.ndarray, tolerance: float, picture: Picture) -> Cutout:
    found = separate(values, tolerance, picture.lossy)
    doubts = list(found.doubts)
    if found.steadiness < STEADY:
        doubts.append(f"cut-outs at neighbouring tolerances agree by {found.steadiness:.0%} only")
    if found.mask.mean() > LARGE_COVER:
        doubts.append("the object covers most of the picture")
    mask = found.mask
    # On a plain background the flood of the drawn pictures agrees, and runs keep its exact edge.
    flood = border_flood(picture.rgb, tolerance)[0].double().numpy()
    if overlap(flood > 0.5, mask > 0.5) >= SAME_MASK:
        mask = flood
    doubts += [*shape_doubts(mask), *card_doubts(mask)]
    return _cutout(values, mask, picture, found.steadiness, tuple(doubts))


def _cutout(
    rgb: np.ndarray,
    mask: np.ndarray,
    picture: Picture,
    steadiness: float,
    doubts: tuple[str, ...],
) -> Cutout:
    channels = torch.from_numpy(rgb).permute(2, 0, 1).to(picture.rgb.dtype).contiguous()
    layer = torch.from_numpy(mask)[None].to(picture.rgb.dtype)
    notes = (*picture.notes, *pieces_note(mask))
    return Cutout(channels, layer, steadiness, doubts, notes)


def _unusable_reason(mask: Tensor) -> str:
    if float(mask.mean()) > 0.5:
        return "the object cannot be separated from its background (it fills the whole picture)"
    return "no object stands out from the background"


def _advice(picture: Picture) -> str:
    return "; ".join((*picture.notes, ADVICE))
