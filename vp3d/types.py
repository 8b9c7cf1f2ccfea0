"""The data that passes between the parts of VP3D.

Conventions, stated here once and relied on everywhere:

* World frame: right-handed, z up, the object stands inside the cube [-1, 1]^3 and faces +x. Its left side is +y.
* Camera: `azimuth_deg` 0 is in front of the object (on +x) and grows counter-clockwise seen from above, so 90 looks at
  the object's left side from +y and 180 at its back. `elevation_deg` 0 is level, 90 straight above. Cameras look at the
  origin with z up. `fov_deg` is the vertical field of view; images are square pixels, row 0 at the top.
* Colour: floats in [0, 1], sRGB-encoded as displayed (what a PNG stores divided by 255). Nothing inside is linear.
* Tensors: images `[B, 3, H, W]`; rays and points are flat, `[N, 3]`; everything float32 unless said.
* Depth is the distance along the (unit) ray; normals point outwards, unit length, in the world frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vp3d.errors import UserError  # noqa: F401  re-exported: everyone raises `vp3d.errors.UserError`


@dataclass(frozen=True)
class Camera:
    """A batch of B cameras on a sphere around the origin; every field is a float32 tensor `[B]`."""

    azimuth_deg: Tensor
    elevation_deg: Tensor
    distance: Tensor
    fov_deg: Tensor

    def __post_init__(self) -> None:
        shapes = {
            tuple(t.shape)
            for t in (self.azimuth_deg, self.elevation_deg, self.distance, self.fov_deg)
        }
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise ValueError(f"Camera fields must share one shape [B], got {sorted(shapes)}")

    def __len__(self) -> int:
        return int(self.azimuth_deg.shape[0])

    def __getitem__(self, index: slice) -> Camera:
        return Camera(
            self.azimuth_deg[index],
            self.elevation_deg[index],
            self.distance[index],
            self.fov_deg[index],
        )

    def to(self, device: torch.device | str) -> Camera:
        """The same cameras on another device."""
        return Camera(
            self.azimuth_deg.to(device),
            self.elevation_deg.to(device),
            self.distance.to(device),
            self.fov_deg.to(device),
        )


@dataclass(frozen=True)
class Rays:
    """N rays in the world frame: `origins [N, 3]`, unit `directions [N, 3]`."""

    origins: Tensor
    directions: Tensor

    def __post_init__(self) -> None:
        if (
            self.origins.shape != self.directions.shape
            or self.origins.ndim != 2
            or self.origins.shape[1] != 3
        ):
            raise ValueError(
                f"Rays need origins and directions [N, 3], got {tuple(self.origins.shape)}, {tuple(self.directions.shape)}"
            )

    def __len__(self) -> int:
        return int(self.origins.shape[0])

    def __getitem__(self, index: slice | Tensor) -> Rays:
        return Rays(self.origins[index], self.directions[index])


@dataclass(frozen=True)
class Render:
    """What N rays saw.

    rgb     [N, 3] colour premultiplied by opacity, over black, in [0, 1]
    opacity [N]    in [0, 1]
    depth   [N]    expected distance along the ray times opacity, >= 0
    normal  [N, 3] opacity-weighted outward normal, or None when it was not asked for
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    normal: Tensor | None = None

    def over(self, background: Tensor) -> Tensor:
        """Composite over `background` ([3] or [N, 3], in [0, 1]); returns rgb [N, 3] in [0, 1]."""
        return self.rgb + (1.0 - self.opacity)[:, None] * background


def to_images(values: Tensor, batch: int, height: int, width: int) -> Tensor:
    """Flat per-ray values `[B*H*W]` or `[B*H*W, C]` as images `[B, C, H, W]` (any range)."""
    return values.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def to_uint8(images: Tensor) -> np.ndarray:
    """Images `[..., C, H, W]` in [0, 1] as 8-bit `[..., H, W, C]`, rounded to the nearest value.

    Values outside [0, 1] are clipped. The result is contiguous and on the CPU.
    """
    values = (images.detach().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return np.ascontiguousarray(values.movedim(-3, -1).cpu().numpy())


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh in the world frame, counter-clockwise faces seen from outside.

    vertices      [V, 3] float32
    faces         [F, 3] int64
    normals       [V, 3] float32 unit outward vertex normals, or None
    vertex_colors [V, 3] float32 in [0, 1], sRGB-encoded, or None
    uv            [V, 2] float32 in [0, 1], origin at the lower left (v up), or None; vertices are split at seams
    texture       [H, W, 3] uint8 sRGB, row 0 is v = 1, or None
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray | None = None
    vertex_colors: np.ndarray | None = None
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None

    def __post_init__(self) -> None:
        if (
            self.vertices.ndim != 2
            or self.vertices.shape[1] != 3
            or self.faces.ndim != 2
            or self.faces.shape[1] != 3
        ):
            raise ValueError(
                f"Mesh needs vertices [V, 3] and faces [F, 3], got {self.vertices.shape}, {self.faces.shape}"
            )
        for name in ("normals", "vertex_colors", "uv"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.vertices):
                raise ValueError(
                    f"Mesh.{name} has {len(value)} rows for {len(self.vertices)} vertices"
                )


@dataclass(frozen=True)
class Asset:
    """A finished asset: the textured mesh, where it came from, and its measured figures."""

    prompt: str
    mesh: Mesh
    run_dir: Path
    figures: dict[str, float] = field(default_factory=dict)
