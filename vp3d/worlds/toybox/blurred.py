"""A mesh as a coarse field would leave it, and exact pictures of its true scene.

Nothing is learned here: the machinery of the refine stage is measured with a teacher that is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from vp3d.config.schema import CameraConfig, ExportConfig
from vp3d.export.build import export_levels
from vp3d.finish import reference_cameras
from vp3d.render.raster import render_mesh
from vp3d.render.shade import lambert_shade
from vp3d.types import Camera, Mesh
from vp3d.worlds.toybox.data import DISTANCE, FOV_DEG
from vp3d.worlds.toybox.images import render_scenes, scene_distance, scene_surface, view_vectors
from vp3d.worlds.toybox.scenes import Spec, build_scene
from vp3d.worlds.toybox.truth import true_mesh

NODES = 48  # of the grid along a side, as in the field of the preset `standard`
BLUR = 1.2  # standard deviation of the blur, cells
DENSITY = 60.0  # inside
REFERENCE = 128  # pixels of a side of the silhouettes that the surface is fitted to


@dataclass(frozen=True)
class GridField:
    """Density and colour on a grid over [-1, 1]^3, trilinear.

    Attributes:
        values: `[1, 4, R, R, R]`: density, then colour, with axes z, y, x.
    """

    values: Tensor

    def density(self, x: Tensor) -> Tensor:
        """Density `[N]` at `x [N, 3]`."""
        return self._at(x)[:, 0]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Density `[N]` and colour `[N, 3]` at `x [N, 3]`."""
        found = self._at(x)
        return found[:, 0], found[:, 1:]

    def _at(self, x: Tensor) -> Tensor:
        grid = x.float()[None, :, None, None]
        found = F.grid_sample(self.values, grid, padding_mode="border", align_corners=True)
        return found[0, :, :, 0, 0].T


def blurred_field(spec: Spec, blur: float = BLUR) -> GridField:
    """The true scene with its light, on a grid and blurred by `blur` cells."""
    scene = build_scene(spec)
    axis = np.linspace(-1.0, 1.0, NODES)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    nodes = np.stack([x, y, z], -1).reshape(-1, 3)
    distance = scene_distance(scene.prims, nodes)[0]
    albedo, normals = scene_surface(scene.prims, scene.materials, nodes)
    color = albedo * lambert_shade(torch.from_numpy(normals)).numpy()[:, None]
    solid = 1.0 / (1.0 + np.exp(np.clip(distance * NODES / 2.0, -30.0, 30.0)))
    layers = np.concatenate([solid[:, None], color], 1).reshape(NODES, NODES, NODES, 4)
    layers = np.stack([gaussian_filter(layers[..., k], blur) for k in range(4)])
    layers[0] *= DENSITY
    return GridField(torch.from_numpy(layers.astype(np.float32))[None])


def blurred_mesh(spec: Spec, config: ExportConfig, blur: float = BLUR) -> Mesh:
    """The surface of `blurred_field`, exported as that of a run."""
    cameras = reference_cameras(CameraConfig(distance=DISTANCE, fov_deg=FOV_DEG))
    opacity = render_mesh(true_mesh(spec), cameras, REFERENCE, REFERENCE)[1]
    return export_levels(blurred_field(spec, blur), config, cameras, opacity)[0]


def exact_pictures(spec: Spec, camera: Camera, size: int, grey: float) -> Tensor:
    """Pictures `[B, 3, size, size]` in [0, 1] of the true scene over a grey."""
    numbers = (camera.azimuth_deg, camera.elevation_deg, camera.distance, camera.fov_deg)
    views = view_vectors(*(value.double().cpu().numpy() for value in numbers))
    which, grounds = np.zeros(len(views)), np.full(len(views), grey)
    pictures = render_scenes([build_scene(spec)], which, views, grounds, size)[0]
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255.0


@dataclass(frozen=True)
class ExactTeacher:
    """A teacher of the refine stage that draws the true scene, with noise.

    Attributes:
        spec: The scene.
        grey: Level behind the pictures.
        noise: Standard deviation of the noise in every pixel.
    """

    spec: Spec
    grey: float
    noise: float = 0.0

    def __call__(
        self, rgb: Tensor, camera: Camera, strength: float, generator: torch.Generator
    ) -> Tensor:
        """Pictures of the shape of `rgb [B, 3, S, S]` in [0, 1]; see `redraw.Teacher`."""
        exact = exact_pictures(self.spec, camera, rgb.shape[-1], self.grey)
        noise = torch.randn(exact.shape, generator=generator)
        return (exact + self.noise * noise).clamp(0.0, 1.0).to(rgb)
