"""The data types that the parts of VP3D exchange, and the conventions that they share.

Conventions:

* World frame: right-handed, z up. The object is inside the cube [-1, 1]^3 and faces +x; its left
  side is +y. Lengths are in units of half the cube's side.
* Camera: `azimuth_deg` 0 is in front of the object, on +x. It grows counter-clockwise as viewed
  from above, so 90 is on +y (the object's left side) and 180 is behind it. `elevation_deg` 0 is
  level and 90 is straight above. A camera looks at the origin, with z up. `fov_deg` is the
  vertical field of view. Pixels are square, and row 0 is the top of the image.
* Colour: floats in [0, 1], sRGB-encoded as displayed (the value in a PNG divided by 255). No
  colour inside the program is linear.
* Tensors: images are `[B, 3, H, W]`, rays and points are flat, `[N, 3]`. All are float32 unless
  stated otherwise.
* Depth is the distance along the unit ray. Normals have unit length and point outwards, in the
  world frame.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vp3d.errors import UserError

OBJ_COMPANIONS = {".mtl", ".png"}  # files that the OBJ writer puts next to `model.obj`


@dataclass(frozen=True)
class Camera:
    """A batch of B cameras that look at the origin from a sphere around it, with z up.

    Attributes:
        azimuth_deg: `[B]`, degrees; 0 is on +x, in front of the object, and 90 on +y. Any turn.
        elevation_deg: `[B]`, degrees in [-90, 90]; 0 is level, 90 straight above.
        distance: `[B]`, from the origin to the camera, in world units, > 0.
        fov_deg: `[B]`, vertical field of view, degrees in (0, 180).

    All four are float32 tensors on one device.

    Raises:
        ValueError: The four fields do not share one shape `[B]`.

    Example:
        >>> level, far, wide = torch.zeros(2), torch.full((2,), 2.9), torch.full((2,), 40.0)
        >>> front_and_back = Camera(torch.tensor([0.0, 180.0]), level, far, wide)
        >>> len(front_and_back)
        2
    """

    azimuth_deg: Tensor
    elevation_deg: Tensor
    distance: Tensor
    fov_deg: Tensor

    def __post_init__(self) -> None:
        fields = (self.azimuth_deg, self.elevation_deg, self.distance, self.fov_deg)
        shapes = {tuple(tensor.shape) for tensor in fields}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise ValueError(f"Camera fields must share one shape [B], got {sorted(shapes)}")

    def __len__(self) -> int:
        return int(self.azimuth_deg.shape[0])

    def __getitem__(self, index: slice | Tensor) -> Camera:
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
    """N rays in the world frame. The rays of an image are flattened row by row.

    Attributes:
        origins: `[N, 3]`, world units.
        directions: `[N, 3]`, unit length, from the camera into the scene.

    Raises:
        ValueError: The shapes differ or are not `[N, 3]`.
    """

    origins: Tensor
    directions: Tensor

    def __post_init__(self) -> None:
        shape = self.origins.shape
        if shape != self.directions.shape or len(shape) != 2 or shape[1] != 3:
            raise ValueError(
                "Rays need origins and directions of one shape [N, 3], "
                f"got {tuple(shape)} and {tuple(self.directions.shape)}"
            )

    def __len__(self) -> int:
        return int(self.origins.shape[0])

    def __getitem__(self, index: slice | Tensor) -> Rays:
        return Rays(self.origins[index], self.directions[index])


@dataclass(frozen=True)
class Render:
    """The volume rendering of N rays, in the order of the rays.

    Attributes:
        rgb: `[N, 3]` in [0, 1], colour premultiplied by opacity, over black.
        opacity: `[N]` in [0, 1].
        depth: `[N]`, >= 0, expected distance along the ray times opacity, in world units.
        normal: `[N, 3]`, opacity-weighted mean of the outward unit normals in the world frame, so
            its length is in [0, 1]; None unless it was requested.
        evaluated: Number of samples at which the field was evaluated, without those in empty cells
            and behind the end of a ray.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    normal: Tensor | None = None
    evaluated: int = 0

    def over(self, background: Tensor) -> Tensor:
        """Composite over `background` (`[3]` or `[N, 3]`, in [0, 1]): rgb `[N, 3]` in [0, 1]."""
        return self.rgb + (1.0 - self.opacity)[:, None] * background


def to_images(values: Tensor, batch: int, height: int, width: int) -> Tensor:
    """Reshape flat per-ray values `[B*H*W]` or `[B*H*W, C]`, any range, to `[B, C, H, W]`."""
    return values.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def to_uint8(images: Tensor) -> np.ndarray:
    """Images `[..., C, H, W]` in [0, 1] as 8-bit `[..., H, W, C]`, rounded to the nearest value.

    Values outside [0, 1] are clipped. The result is contiguous and on the CPU.
    """
    values = (images.detach().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return np.ascontiguousarray(values.movedim(-3, -1).cpu().numpy())


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh in the world frame (z up, front on +x, inside [-1, 1]^3).

    The corners of a face are in counter-clockwise order as viewed from outside.

    Attributes:
        vertices: `[V, 3]` float32, world units. With `uv`, vertices are duplicated at the seams.
        faces: `[F, 3]` int64, indices into `vertices`.
        normals: `[V, 3]` float32, unit outward vertex normals, or None.
        vertex_colors: `[V, 3]` float32 in [0, 1], sRGB-encoded, or None.
        uv: `[V, 2]` float32 in [0, 1], origin at the lower left (v points up), or None.
        texture: `[H, W, 3]` uint8, sRGB-encoded; row 0 is v = 1; or None.
        maps: Further pictures over the UVs, by name, row 0 at v = 1: "normal" `[H, W, 3]` uint8 is
            a tangent-space normal map (green up), "occlusion" `[H, W]` uint8 the share of ambient
            light, 255 for all.
        tangents: `[V, 4]` float32, unit tangents along u and the sign of the bitangent (see
            vp3d/export/maps.py), or None. A normal map needs them.

    Raises:
        ValueError: A shape does not fit.

    Example:
        >>> corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
        >>> Mesh(corners, np.array([[0, 1, 2]])).faces.shape
        (1, 3)
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray | None = None
    vertex_colors: np.ndarray | None = None
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    tangents: np.ndarray | None = None

    def __post_init__(self) -> None:
        if any(array.ndim != 2 or array.shape[1] != 3 for array in (self.vertices, self.faces)):
            raise ValueError(
                "Mesh needs vertices [V, 3] and faces [F, 3], "
                f"got {self.vertices.shape} and {self.faces.shape}"
            )
        for name in ("normals", "vertex_colors", "uv", "tangents"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.vertices):
                raise ValueError(
                    f"Mesh.{name} has {len(value)} rows for {len(self.vertices)} vertices"
                )


@dataclass(frozen=True)
class Asset:
    """A finished asset: the result of `vp3d.generate`.

    Attributes:
        prompt: The text that it was generated from.
        mesh: The textured mesh, in the world frame.
        run_dir: The run folder, which holds the exported files, the report and the settings.
        figures: How well each exported file agrees with the field, by name; for example
            `glb_iou` in [0, 1] and `glb_psnr` in dB.
        lit: The mesh with the light of the pictures in its colours, for previews; None if `mesh`
            has it already.
    """

    prompt: str
    mesh: Mesh
    run_dir: Path
    figures: dict[str, float] = field(default_factory=dict)
    lit: Mesh | None = None

    def path(self, kind: str) -> Path:
        """The exported file of one format, `model.<kind>` in the run folder.

        Args:
            kind: A format of `export.formats`: "glb", "obj", "ply", "stl", "usdz" or "3mf".

        Returns:
            The path of the file, which exists.

        Raises:
            UserError: The run has no such file. The message lists the formats that exist.

        Example:
            >>> asset.path("glb")  # doctest: +SKIP
            PosixPath('outputs/20260131-120000-a-red-mushroom-s0/model.glb')
        """
        path = self.run_dir / f"model.{kind}"
        if path.is_file():
            return path
        suffixes = {file.suffix for file in self.run_dir.glob("model.*") if file.is_file()}
        formats = ", ".join(sorted(suffix[1:] for suffix in suffixes - OBJ_COMPANIONS))
        raise UserError(
            f"{self.run_dir} has no model.{kind}; formats in this folder: {formats or 'none'}; "
            "the verb export writes another: "
            f"`export {shlex.quote(str(self.run_dir))} --formats NAME`"
        )
