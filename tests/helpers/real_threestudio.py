"""The real threestudio, where it can be imported: a checkout on PYTHONPATH, with the CUDA packages
it imports. For tests only.
"""

from __future__ import annotations

import importlib
from types import ModuleType


def import_or_reason(name: str) -> tuple[ModuleType | None, str]:
    """The module, or None and why it cannot be imported, in one line."""
    try:
        return importlib.import_module(name), ""
    except Exception as error:  # noqa: BLE001  CUDA packages fail at import in ways of their own, not by ImportError alone
        return None, " ".join(f"{name} cannot be imported: {type(error).__name__}: {error}".split())
