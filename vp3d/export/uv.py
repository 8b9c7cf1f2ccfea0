"""Texture coordinates: xatlas in a child process with a deadline, our own atlas when it is late or fails.

xatlas can run for hours on odd meshes and cannot be interrupted from within, hence the child: `python -m vp3d.export.uv
IN.npz OUT.npz`. This module imports numpy only, so the child starts fast. Arrays travel as .npz without pickle.
UV origin at the lower left, v up, range [0, 1]; vertices are split at seams: `mapping` names the old vertex of each.
Our own atlas gives every pair of triangles a square cell, a half each with a gutter: never pretty, always valid.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PADDING = 2  # texels between charts
CELL_PADDING = 1.0  # texels around a triangle of our own atlas, less where the cells are small


@dataclass(frozen=True)
class Unwrap:
    """An atlas: `mapping [V']` old vertex of each new one, `faces [F, 3]`, `uv [V', 2]` in [0, 1], and who made it."""

    mapping: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    method: str  # xatlas | cells


def unwrap(vertices: np.ndarray, faces: np.ndarray, texture_size: int, deadline_s: float) -> Unwrap:
    """Unwrap `vertices [V, 3]`, `faces [F, 3]` for a square texture of `texture_size`, in `deadline_s` seconds or by cells."""
    return unwrap_xatlas(vertices, faces, texture_size, deadline_s) or unwrap_cells(
        faces, texture_size
    )


def unwrap_xatlas(
    vertices: np.ndarray, faces: np.ndarray, texture_size: int, deadline_s: float
) -> Unwrap | None:
    """The xatlas atlas, or None if the child was late, died, or made something that is not an atlas of these faces."""
    if deadline_s <= 0:
        return None
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    with tempfile.TemporaryDirectory(prefix="vp3d-uv-") as folder:
        given, made = Path(folder, "in.npz"), Path(folder, "out.npz")
        np.savez(
            given,
            vertices=vertices.astype(np.float32),
            faces=faces.astype(np.uint32),
            size=np.int64(texture_size),
        )
        command = [sys.executable, "-m", "vp3d.export.uv", str(given), str(made)]
        try:
            subprocess.run(
                command,
                timeout=deadline_s,
                check=True,
                capture_output=True,
                env={**os.environ, "PYTHONPATH": paths},
            )
            with np.load(made, allow_pickle=False) as data:
                atlas = Unwrap(
                    data["mapping"].astype(np.int64),
                    data["faces"].astype(np.int64),
                    data["uv"],
                    "xatlas",
                )
        except (subprocess.SubprocessError, OSError, ValueError, KeyError):
            return None
    return atlas if is_atlas(atlas, faces) else None


def is_atlas(atlas: Unwrap, faces: np.ndarray) -> bool:
    """Whether `atlas` has the same triangles as `faces [F, 3]` and finite UVs in [0, 1]."""
    return (
        atlas.faces.shape == faces.shape
        and bool((atlas.mapping[atlas.faces] == faces).all())
        and bool(np.isfinite(atlas.uv).all())
        and bool((atlas.uv >= 0).all() and (atlas.uv <= 1).all())
    )


def unwrap_cells(faces: np.ndarray, texture_size: int) -> Unwrap:
    """Our own atlas of `faces [F, 3]`: two triangles a square cell, none touching another; every corner its own vertex."""
    count = len(faces)
    side = max(int(np.ceil(np.sqrt((count + 1) // 2))), 1)
    cell = texture_size / side  # texels
    pad = min(CELL_PADDING, cell / 8.0)
    leg = (
        cell - (2.0 + np.sqrt(2.0)) * pad * 1.001
    )  # leaves 2 pad between the long sides of the two halves
    lower = np.array([[pad, pad], [pad + leg, pad], [pad, pad + leg]])
    halves = np.stack([lower, cell - lower])
    index = np.arange(count)
    corner = np.stack([(index // 2) % side, (index // 2) // side], -1) * cell
    uv = (corner[:, None, :] + halves[index % 2]) / texture_size
    return Unwrap(
        faces.reshape(-1).astype(np.int64),
        np.arange(3 * count, dtype=np.int64).reshape(-1, 3),
        np.clip(uv.reshape(-1, 2), 0.0, 1.0).astype(np.float32),
        "cells",
    )


def _child(given: Path, made: Path) -> None:
    import xatlas

    with np.load(given, allow_pickle=False) as data:
        vertices, faces, size = data["vertices"], data["faces"], int(data["size"])
    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices, faces)
    options = xatlas.PackOptions()
    options.resolution, options.padding, options.bilinear = size, PADDING, True
    atlas.generate(pack_options=options)
    mapping, triangles, uv = atlas[0]
    temporary = made.with_name("partial.npz")
    np.savez(temporary, mapping=mapping, faces=triangles, uv=uv)
    temporary.replace(made)


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is the parent's to handle: it still wants this atlas
    _child(Path(sys.argv[1]), Path(sys.argv[2]))
