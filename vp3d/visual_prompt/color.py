"""Colours of a picture file in sRGB: by its ICC profile, or by the marks of a file without one.

A PNG may give a gamma and its primaries, or code points (cICP, third edition of the PNG
specification; the numbers are those of ITU-T H.273), and a camera marks Adobe RGB in EXIF.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from vp3d.system.srgb import linear_to_srgb, srgb_to_linear

SRGB_GAMMA = 0.45455
ADOBE_GAMMA = 256 / 563
D65 = (0.3127, 0.3290)
# x and y of red, green and blue
SRGB_PRIMARIES = np.array([[0.64, 0.33], [0.30, 0.60], [0.15, 0.06]])
ADOBE_PRIMARIES = np.array([[0.64, 0.33], [0.21, 0.71], [0.15, 0.06]])
CODED_PRIMARIES = {
    1: SRGB_PRIMARIES,
    9: np.array([[0.708, 0.292], [0.170, 0.797], [0.131, 0.046]]),  # BT.2020
    12: np.array([[0.68, 0.32], [0.265, 0.69], [0.15, 0.06]]),  # Display P3
}
# None is the curve of sRGB, as which viewers show those of television (1, 6, 14, 15) too
CODED_GAMMAS = {4: 1 / 2.2, 5: 1 / 2.8, 8: 1.0, 13: None, 1: None, 6: None, 14: None, 15: None}
HDR = {16: "PQ", 18: "HLG"}
PNG_START = b"\x89PNG\r\n\x1a\n"
SAME_PRIMARIES = 0.005  # difference of x or y up to which primaries are those of sRGB
# XYZ to the responses of the eye's cones (Bradford), in which white points are exchanged
CONES = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


@dataclass(frozen=True)
class ColorMarks:
    """How values become linear sRGB.

    Attributes:
        gamma: Exponent with which the file was encoded, in (0.1, 10); None for sRGB's curve.
        matrix: `[3, 3]` from the file's linear RGB to linear sRGB.
    """

    gamma: float | None
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


def coded_marks(path: Path, notes: list[str]) -> ColorMarks | None:
    """The colour marks by a PNG's code points, which go before its profile; None without them.

    Args:
        path: A picture file of any format.
        notes: Gets a sentence if the code points are of a kind that is not converted.
    """
    points = _code_points(path)
    if points is None:
        return None
    primaries, transfer, matrix, is_full = points
    if transfer in HDR:
        notes.append(f"it is an HDR picture ({HDR[transfer]}); its colours may be wrong")
    elif primaries in CODED_PRIMARIES and transfer in CODED_GAMMAS and (matrix, is_full) == (0, 1):
        return ColorMarks(CODED_GAMMAS[transfer], to_linear_srgb(CODED_PRIMARIES[primaries], D65))
    return None


def _code_points(path: Path) -> tuple[int, int, int, int] | None:
    """Primaries, transfer, matrix and full range of a PNG; None if it gives none."""
    with path.open("rb") as file:
        if file.read(len(PNG_START)) != PNG_START:
            return None
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"cICP" and length == 4 and len(data := file.read(4)) == 4:
                return data[0], data[1], data[2], data[3]
            if kind == b"IDAT":
                return None
            file.seek(length + 4, io.SEEK_CUR)
    return None


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
    coded = values[..., :3].astype(np.float64)
    light = srgb_to_linear(coded) if marks.gamma is None else coded ** (1.0 / marks.gamma)
    curve = linear_to_srgb((light @ marks.matrix.T).clip(0.0, 1.0))
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
