"""Colours of a picture file in sRGB: by its ICC profile, or by the marks of a file without one.

A PNG may give a gamma and its primaries, and a camera marks Adobe RGB in EXIF.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

SRGB_GAMMA = 0.45455
ADOBE_GAMMA = 256 / 563
D65 = (0.3127, 0.3290)
# x and y of red, green and blue
SRGB_PRIMARIES = np.array([[0.64, 0.33], [0.30, 0.60], [0.15, 0.06]])
ADOBE_PRIMARIES = np.array([[0.64, 0.33], [0.21, 0.71], [0.15, 0.06]])
SAME_PRIMARIES = 0.005  # difference of x or y up to which primaries are those of sRGB
# XYZ to the responses of the eye's cones (Bradford), in which white points are exchanged
CONES = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


@dataclass(frozen=True)
class ColorMarks:
    """How values become linear sRGB.

    Attributes:
        gamma: Exponent with which the file was encoded, in (0.1, 10).
        matrix: `[3, 3]` from the file's linear RGB to linear sRGB.
    """

    gamma: float
    matrix: np.ndarray


def color_marks(picture: Image.Image) -> ColorMarks | None:
    """The colour marks of an opened file without ICC profile; None if its values are sRGB."""
    if _is_adobe_rgb(picture):
        return ColorMarks(ADOBE_GAMMA, to_linear_srgb(ADOBE_PRIMARIES, D65))
    gamma = picture.info.get("gamma")
    if gamma is None or "srgb" in picture.info or not 0.1 < gamma < 10:
        return None
    matrix = np.eye(3)
    points = np.reshape(picture.info.get("chromaticity", (*D65, *SRGB_PRIMARIES.ravel())), (4, 2))
    if np.abs(points - [D65, *SRGB_PRIMARIES]).max() > SAME_PRIMARIES:
        try:
            matrix = to_linear_srgb(points[1:], (float(points[0, 0]), float(points[0, 1])))
        except np.linalg.LinAlgError:  # primaries that span no colours
            matrix = np.eye(3)
    is_srgb = abs(gamma - SRGB_GAMMA) <= 0.02 and bool((matrix == np.eye(3)).all())
    return None if is_srgb else ColorMarks(gamma, matrix)


def to_linear_srgb(primaries: np.ndarray, white: tuple[float, float]) -> np.ndarray:
    """The matrix `[3, 3]` from linear RGB of some primaries to linear sRGB.

    Args:
        primaries: x and y of red, green and blue, `[3, 2]`.
        white: x and y of the white point; white stays white.

    Raises:
        LinAlgError: The primaries lie on a line, or white is no colour.
    """
    seen, wanted = _xyz(np.array([white]))[:, 0], _xyz(np.array([D65]))[:, 0]
    if not np.isfinite(seen).all() or (CONES @ seen <= 0).any():
        raise np.linalg.LinAlgError("the white point is no colour")
    adapted = np.linalg.inv(CONES) @ np.diag((CONES @ wanted) / (CONES @ seen)) @ CONES
    return np.linalg.inv(_to_xyz(SRGB_PRIMARIES, wanted)) @ adapted @ _to_xyz(primaries, seen)


def _xyz(points: np.ndarray) -> np.ndarray:
    """XYZ `[3, N]` with Y = 1 of x and y `[N, 2]`."""
    x, y = points.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.array([x / y, np.ones_like(y), (1.0 - x - y) / y])


def _to_xyz(primaries: np.ndarray, white: np.ndarray) -> np.ndarray:
    """The matrix `[3, 3]` from linear RGB to XYZ, with RGB 1, 1, 1 as `white [3]`."""
    x, y = primaries.T
    columns = np.array([x, y, 1.0 - x - y])
    if abs(np.linalg.det(columns)) < 1e-4:
        raise np.linalg.LinAlgError("the primaries lie on a line")
    return columns * np.linalg.solve(columns, white)


def apply_marks(values: np.ndarray, marks: ColorMarks) -> np.ndarray:
    """Values `[H, W, 4]` in [0, 1] as sRGB; the fourth, alpha, is unchanged."""
    linear = values[..., :3].astype(np.float64) ** (1.0 / marks.gamma) @ marks.matrix.T
    linear = linear.clip(0.0, 1.0)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.concatenate([curve.astype(np.float32), values[..., 3:]], axis=-1)


def apply_profile(picture: Image.Image, profile: bytes, notes: list[str]) -> Image.Image:
    """The colours of `picture` converted from its ICC profile to sRGB, without its alpha.

    Args:
        picture: The picture, loaded.
        profile: The ICC profile.
        notes: Gets a sentence if the profile cannot be applied.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        picture = {"GRAY": lambda p: p.convert("L"), "RGB": lambda p: p.convert("RGB")}.get(
            space, lambda p: p
        )(picture)
        converted = ImageCms.profileToProfile(
            picture,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        notes.append("its colour profile cannot be applied; the colours are taken as sRGB")
        return picture
    return picture if converted is None else converted


def _is_adobe_rgb(picture: Image.Image) -> bool:
    """Whether EXIF marks the colours as Adobe RGB, as cameras do that embed no profile."""
    try:
        exif = picture.getexif()
        exif.get_ifd(0x8769)  # Pillow finds the next one through this
        return exif.get_ifd(0xA005).get(1, "")[:3] == "R03"
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
