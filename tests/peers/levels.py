"""What normal maps, levels of detail and quantisation give and cost.

    python -m tests.peers.levels RUN...

For each run: PSNR of the shading of 2,000 faces against that of 20,000, without and with the normal
map; IoU of the silhouettes of the levels with those of the mesh; and the size of a quantised GLB
with WebP as a share of the plain one.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from vp3d import build, finish
from vp3d.config.schema import ExportConfig
from vp3d.export.build import export_levels
from vp3d.export.glb import glb_bytes
from vp3d.export.maps import mapped_normals
from vp3d.export.style import Style
from vp3d.export.threshold import silhouette_iou
from vp3d.pipeline import stored_config
from vp3d.render.occupancy import OccupancyGrid
from vp3d.render.raster import Fragments, rasterize
from vp3d.render.shade import lambert_shade
from vp3d.runs.events import Watch
from vp3d.runs.folder import RunFolder
from vp3d.runs.journal import Journal
from vp3d.types import Asset, Mesh

SIDE = 256  # pixels of the pictures
LEVELS = [0.5, 0.25, 0.1]
FINE = ExportConfig(faces=20000, texture_size=64, maps=["base"], unwrap_deadline_s=0.0)
COARSE = ExportConfig(faces=2000, texture_size=512, unwrap_deadline_s=90.0)


def shading(mesh: Mesh, seen: Fragments, mapped: bool) -> np.ndarray:
    """The light of each pixel `[B, H, W]`, with interpolated or mapped normals."""
    hit = seen.face_index >= 0
    faces, at = seen.face_index[hit].numpy(), seen.barycentric[hit].numpy()
    if mapped:
        normals = mapped_normals(mesh, faces, at)
    else:
        assert mesh.normals is not None
        normals = np.einsum("kj,kjc->kc", at, mesh.normals[mesh.faces[faces]])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    light = np.zeros(tuple(hit.shape))
    values = torch.from_numpy(np.ascontiguousarray(normals, np.float64))
    light[hit.numpy()] = lambert_shade(values).numpy()
    return light


def row(folder: Path) -> str:
    """The figures of a run as a row of the table."""
    config = stored_config(folder, Watch())
    device, cameras = torch.device("cpu"), finish.reference_cameras(config.camera)
    field = build.load_field(config, Journal(RunFolder.open(folder), Watch()), device)
    _, opacity = finish.field_views(field, config.render, cameras, finish.REFERENCE_SIZE, device)
    inside = OccupancyGrid(config.render).contains
    made = partial(export_levels, field, cameras=cameras, reference_opacity=opacity, within=inside)
    grid = config.export.grid
    fine, coarse = (made(replace(one, grid=grid))[0] for one in (FINE, COARSE))
    levels = made(replace(config.export, maps=["base"], lods=LEVELS))
    seen = [rasterize(mesh, cameras, SIDE, SIDE) for mesh in (fine, coarse, levels[0])]
    both = ((seen[0].face_index >= 0) & (seen[1].face_index >= 0)).numpy()
    right = shading(fine, seen[0], False)
    errors = [shading(coarse, seen[1], mapped) - right for mapped in (False, True)]
    without, mapped = (-10.0 * np.log10(np.square(e[both]).mean()) for e in errors)
    opacity = (seen[2].face_index >= 0).float()
    found = [silhouette_iou(mesh, cameras, opacity) for mesh in levels[1:]]
    asset = Asset("a test", levels[0], folder)
    sizes = [len(glb_bytes(asset, s)) for s in (Style(compress="quantize", image="webp"), Style())]
    shares = " | ".join(f"{value:.4f}" for value in found)
    words = [config.prompt, f"{without:.1f}", f"{mapped:.1f}", shares, f"{sizes[0] / sizes[1]:.2f}"]
    return f"| {' | '.join(words)} |\n"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    shares = " | ".join(f"IoU of {share:g}" for share in LEVELS)
    sys.stdout.write(f"| prompt | dB without | with normal map | {shares} | quantised |\n")
    sys.stdout.write(f"|---|{'--:|' * 6}\n")
    for run in parser.parse_args().runs:
        sys.stdout.write(row(run))
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
