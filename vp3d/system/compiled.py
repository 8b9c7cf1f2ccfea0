"""Compile kernels by numba, also where no folder can be written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: `numba.njit` with its cache on disk.

    Without a folder for the cache (a package that is read-only, and no home), the function is
    compiled for this process only.

    Args:
        options: Of `numba.njit`.
    """

    def compile_one(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(function, cache=True, **options)
        except RuntimeError:  # numba found no folder for its cache
            return numba.njit(function, **options)

    return compile_one
