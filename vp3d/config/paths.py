"""Where the files that ship with VP3D are, and how a path in a config is found.

In a checkout, `assets/` and `configs/` are next to the package; in an installed wheel they are
inside it.
"""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (PACKAGE / "assets").is_dir()  # from a wheel, not a checkout
ROOT = PACKAGE if INSTALLED else PACKAGE.parent  # the folder of assets/ and configs/
ASSETS = ROOT / "assets" / "toybox"
MANIFEST = ASSETS / "MANIFEST.json"


def program() -> str:
    """The command that starts VP3D, for messages: `vp3d` when installed, else `python launch.py`.

    Example:
        >>> f"run: {program()} models fetch sd15"
        'run: python launch.py models fetch sd15'
    """
    return "vp3d" if INSTALLED else "python launch.py"


def locate(path: str) -> Path:
    """The path of a configured file or folder: as given if it exists, else below `ROOT`.

    The result need not exist. An absolute path is returned unchanged.
    """
    found = expand(path)
    return found if found.is_absolute() or found.exists() else ROOT / found


def expand(path: str) -> Path:
    """`path` with a leading `~` replaced by the home folder; unchanged if there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def data_home() -> Path:
    """The folder of fetched models: the checkout, else the user's data folder (XDG)."""
    if not INSTALLED:
        return ROOT
    return expand(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "vp3d"
