"""Texture coordinates: xatlas in a child process with a deadline, or our own atlas.

xatlas can run for hours on unusual meshes and cannot be interrupted from within, so it runs as a
child, which gets this file as its program. If it is late or fails, our own atlas is used. It gives
each pair of triangles a square cell, one half each with a gutter between them: not compact, but
always valid. This module imports numpy only, so that the child starts fast. Arrays are passed as
.npz without pickle. The child finds its modules where Python is installed and in PYTHONPATH, never
in the folder where the user happens to be.

Conventions: the UV origin is at the lower left, v points up, the range is [0, 1]. Vertices are
split at seams; `mapping` holds the old vertex of each new one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

PADDING = 2  # texels between charts
CELL_PADDING = 1.0  # texels around a triangle of our own atlas; less if the cells are small


@dataclass(frozen=True)
class Unwrap:
    """A texture atlas.

    Attributes:
        mapping: Old vertex of each new one `[V']`.
        faces: Triangles in new vertices `[F, 3]`.
        uv: Texture coordinates `[V', 2]` in [0, 1].
        method: "xatlas", or "cells" for our own atlas.
    """

    mapping: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    method: str


def unwrap(vertices: np.ndarray, faces: np.ndarray, texture_size: int, deadline_s: float) -> Unwrap:
    """A texture atlas by xatlas, or our own if xatlas fails or misses the deadline.

    Args:
        vertices: Positions `[V, 3]`.
        faces: Triangles `[F, 3]`.
        texture_size: Texels of a side of the square texture.
        deadline_s: Seconds that xatlas may take; 0 for our own atlas.
    """
    atlas = unwrap_xatlas(vertices, faces, texture_size, deadline_s)
    return inset(atlas or unwrap_cells(faces, texture_size), texture_size)


def inset(atlas: Unwrap, texture_size: int) -> Unwrap:
    """The atlas, shrunk so that its UVs stay half a texel inside the texture.

    A bilinear look-up then never reaches over the border, whatever the wrap mode of a viewer.
    """
    half = 0.5 / texture_size
    uv = half + (1.0 - 2.0 * half) * atlas.uv.astype(np.float64)
    return replace(atlas, uv=uv.astype(np.float32))


def unwrap_xatlas(
    vertices: np.ndarray, faces: np.ndarray, texture_size: int, deadline_s: float
) -> Unwrap | None:
    """The atlas by xatlas, with the arguments of `unwrap`.

    Returns:
        The atlas, or None if the child was late, failed, or returned an invalid atlas.
    """
    if deadline_s <= 0:
        return None
    with tempfile.TemporaryDirectory(prefix="vp3d-uv-") as folder:
        source, result = Path(folder, "in.npz"), Path(folder, "out.npz")
        np.savez(
            source,
            vertices=vertices.astype(np.float32),
            faces=faces.astype(np.uint32),
            size=np.int64(texture_size),
        )
        command = [sys.executable, "-P", str(Path(__file__).resolve()), str(source), str(result)]
        try:
            subprocess.run(
                command,
                timeout=deadline_s,
                check=True,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                env=child_environment(),
            )
            with np.load(result, allow_pickle=False) as data:
                mapping, triangles = (
                    data["mapping"].astype(np.int64),
                    data["faces"].astype(np.int64),
                )
                atlas = Unwrap(mapping, triangles, data["uv"], "xatlas")
        except (subprocess.SubprocessError, OSError, ValueError, KeyError):
            return None
    return atlas if is_atlas(atlas, faces) else None


def child_environment() -> dict[str, str]:
    """The environment of a Python child that must not import from the current folder.

    -P leaves that folder out of `sys.path`; an empty or relative entry of PYTHONPATH would put it
    back, so only absolute ones are kept.
    """
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [entry for entry in entries if Path(entry).is_absolute()]
    rest = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return rest | ({"PYTHONPATH": os.pathsep.join(kept)} if kept else {})


def is_atlas(atlas: Unwrap, faces: np.ndarray) -> bool:
    """Whether `atlas` has the same triangles as `faces [F, 3]` and finite UVs in [0, 1]."""
    return (
        atlas.faces.shape == faces.shape
        and bool((atlas.mapping[atlas.faces] == faces).all())
        and bool(np.isfinite(atlas.uv).all())
        and bool((atlas.uv >= 0).all() and (atlas.uv <= 1).all())
    )


def unwrap_cells(faces: np.ndarray, texture_size: int) -> Unwrap:
    """Our own atlas of `faces [F, 3]`: two separate triangles in each square cell.

    Each corner becomes a vertex of its own.
    """
    count = len(faces)
    side = max(int(np.ceil(np.sqrt((count + 1) // 2))), 1)
    cell = texture_size / side  # texels
    pad = min(CELL_PADDING, cell / 8.0)
    # Leaves 2 * pad between the long sides of the two halves.
    leg = cell - (2.0 + np.sqrt(2.0)) * pad * 1.001
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


def _child(source: Path, result: Path) -> None:
    """Run xatlas on the arrays in the file `source` and write the atlas to the file `result`."""
    import xatlas

    with np.load(source, allow_pickle=False) as data:
        vertices, faces, size = data["vertices"], data["faces"], int(data["size"])
    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices, faces)
    options = xatlas.PackOptions()
    options.resolution, options.padding, options.bilinear = size, PADDING, True
    atlas.generate(pack_options=options)
    mapping, triangles, uv = atlas[0]
    temporary = result.with_name("partial.npz")
    np.savez(temporary, mapping=mapping, faces=triangles, uv=uv)
    temporary.replace(result)


if __name__ == "__main__":
    # Ctrl-C reaches the child too, but the parent handles it and still needs this atlas.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _child(Path(sys.argv[1]), Path(sys.argv[2]))
