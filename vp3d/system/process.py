"""When this process started."""

from __future__ import annotations

import psutil


def process_start() -> float:
    """When this process started, seconds since 1970."""
    return float(psutil.Process().create_time())
