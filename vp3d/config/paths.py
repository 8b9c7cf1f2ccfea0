"""Where the files that ship with VP3D are, and how a path in a config is found.

In a checkout, `assets/` and `configs/` are beside the package; in an installed wheel they are inside it.
"""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (PACKAGE / "assets").is_dir()  # from a wheel, and not a checkout
ROOT = PACKAGE if INSTALLED else PACKAGE.parent  # the folder of assets/ and configs/
ASSETS = ROOT / "assets" / "toybox"
MANIFEST = ASSETS / "MANIFEST.json"


def locate(path: str) -> Path:
    """Where a configured file or folder is: as given if it exists, else below `ROOT`.

    It need not exist.
    """
    found = expand(path)
    return found if found.is_absolute() or found.exists() else ROOT / found


def expand(path: str) -> Path:
    """A path as a user writes it, `~` being their home; unchanged where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def data_home() -> Path:
    """Where fetched models are kept: the checkout, else the user's data folder (XDG)."""
    if not INSTALLED:
        return ROOT
    return expand(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "vp3d"
