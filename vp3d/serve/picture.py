"""Read an uploaded picture in a process of its own, and write it again as a plain PNG.

    python -m vp3d.serve.picture IN OUT

Decoders of pictures are where hostile bytes do harm: this process has little memory and time, and
what it writes has been decoded. It prints width and height, or one line that says why not.
"""

from __future__ import annotations

import io
import resource
import sys
import warnings
from pathlib import Path
from typing import Any

MEMORY = 2 << 30  # bytes of address space
SECONDS = 20  # of processor time
MAX_SIDE = 4096  # pixels
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


def rewrite(source: Path, target: Path) -> tuple[int, int]:
    """Write the picture of `source` to `target` as PNG, in sRGB; its width and height.

    Raises ValueError with the reason if it is no picture that is taken.
    """
    from PIL import Image, ImageOps

    warnings.simplefilter("ignore")
    try:
        with Image.open(source, formats=FORMATS) as picture:
            width, height = picture.size
            if max(width, height) > MAX_SIDE:
                raise ValueError(f"it has {width} x {height} pixels; at most {MAX_SIDE} a side")
            picture.load()
            turned = ImageOps.exif_transpose(picture)
            alpha = turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info
            mode = "RGBA" if alpha else "RGB"
            profile = turned.info.get("icc_profile")
            plain = turned.convert(mode)
            if profile and turned.mode in ("RGB", "RGBA"):
                plain = _to_srgb(plain, profile)
            clean = Image.frombytes(mode, plain.size, plain.tobytes())
            clean.save(target, format="PNG")
            return clean.size
    except ValueError:
        raise
    except Exception as error:  # decoders raise many types for a damaged file
        raise ValueError(f"it cannot be read; send one of {', '.join(FORMATS)}") from error


def _to_srgb(picture: Any, profile: bytes) -> Any:
    """The picture in sRGB; unchanged if its profile cannot be used."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"))
    except (ImageCms.PyCMSError, OSError):
        return picture


def main(arguments: list[str]) -> int:
    """Rewrite one picture within limits of memory and time."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    try:
        width, height = rewrite(Path(arguments[0]), Path(arguments[1]))
    except (ValueError, MemoryError) as error:
        sys.stdout.write(f"{error or 'it needs too much memory'}\n")
        return 2
    sys.stdout.write(f"{width} {height}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
