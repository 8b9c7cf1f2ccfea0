"""Cameras on a sphere around the origin, and their rays.

Conventions (world frame and angles as in vp3d/types.py):

* The frame of a camera is (right, up, forward), orthonormal, with right x up = -forward. The camera
  looks along forward, at the origin. The frame is computed in closed form, so the azimuth is
  meaningful straight above and below the object too.
* Pixel coordinates are continuous: x grows to the right, y downwards, and the centre of the pixel
  in column j and row i is (j + 0.5, i + 0.5).
* Pixels are square. `fov_deg` spans the image height, so the focal length is
  0.5 * height / tan(fov / 2) pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vp3d.config.schema import CameraConfig
from vp3d.types import Camera, Rays

Angles = float | Sequence[float] | Tensor  # one value for all cameras, or one for each


def orbit(azimuth_deg: Angles, elevation_deg: Angles, distance: Angles, fov_deg: Angles) -> Camera:
    """Cameras from numbers or sequences; the fields are `[B]` float32.

    Single values are repeated for all cameras. Angles are in degrees, distances in world units.

    Raises:
        ValueError: Two sequences have different lengths.

    Example:
        >>> len(orbit([0.0, 90.0, 180.0], 20.0, 2.9, 40.0))
        3
    """
    values = [
        torch.as_tensor(v, dtype=torch.float32).reshape(-1)
        for v in (azimuth_deg, elevation_deg, distance, fov_deg)
    ]
    lengths = [len(v) for v in values]
    count = max(lengths)
    if any(length not in (1, count) for length in lengths):
        raise ValueError(f"orbit needs single values or sequences of one length, got {lengths}")
    return Camera(*(v.expand(count).contiguous() for v in values))


def ring(n: int, elevation_deg: float, distance: float, fov_deg: float) -> Camera:
    """`n` cameras at equal steps of azimuth, the first in front of the object; fields `[n]`."""
    return orbit([360.0 * i / n for i in range(n)], elevation_deg, distance, fov_deg)


def sample_cameras(n: int, config: CameraConfig, generator: torch.Generator) -> Camera:
    """`n` random cameras, one in each of `n` equal sectors of azimuth (stratified sampling).

    The sectors share one random offset and each camera has its own jitter in its sector. So every
    azimuth is equally likely, and the cameras of one step surround the object. Elevations are
    independent and uniform between the limits of the config.

    Returns:
        Cameras with fields `[n]`, azimuth in [0, 360).
    """
    offset = torch.rand(1, generator=generator)
    jitter = torch.rand(n, generator=generator)
    azimuth = torch.remainder((torch.arange(n) + jitter) * (360.0 / n) + 360.0 * offset, 360.0)
    span = config.elevation_max_deg - config.elevation_min_deg
    elevation = config.elevation_min_deg + span * torch.rand(n, generator=generator)
    return orbit(azimuth, elevation, config.distance, config.fov_deg)


def camera_position(camera: Camera) -> Tensor:
    """Positions of the cameras in the world frame: `[B, 3]`, `distance` from the origin."""
    return -camera.distance[:, None] * camera_frame(camera)[2]


def camera_frame(camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Unit axes (right, up, forward) of the cameras in the world frame, `[B, 3]` each."""
    azimuth, elevation = torch.deg2rad(camera.azimuth_deg), torch.deg2rad(camera.elevation_deg)
    cos_a, sin_a, cos_e, sin_e = azimuth.cos(), azimuth.sin(), elevation.cos(), elevation.sin()
    right = torch.stack([-sin_a, cos_a, torch.zeros_like(azimuth)], dim=-1)
    up = torch.stack([-sin_e * cos_a, -sin_e * sin_a, cos_e], dim=-1)
    forward = torch.stack([-cos_e * cos_a, -cos_e * sin_a, -sin_e], dim=-1)
    return right, up, forward


def focal_length(camera: Camera, height: int) -> Tensor:
    """Focal length in pixels for an image of `height` rows: `[B]`, > 0."""
    return 0.5 * height / torch.tan(0.5 * torch.deg2rad(camera.fov_deg))


def camera_rays(camera: Camera, height: int, width: int) -> Rays:
    """One ray through each pixel centre, with unit directions.

    Returns:
        `B * height * width` rays, flat in row-major image order (see `vp3d.types.to_images`).
    """
    right, up, forward = (axis[:, None, None, :] for axis in camera_frame(camera))
    device = camera.distance.device
    focal = focal_length(camera, height)[:, None, None, None]
    x = (torch.arange(width, device=device) + 0.5 - 0.5 * width)[None, None, :, None]
    y = (torch.arange(height, device=device) + 0.5 - 0.5 * height)[None, :, None, None]
    directions = F.normalize(forward + (x / focal) * right - (y / focal) * up, dim=-1)
    origins = (-camera.distance[:, None, None, None] * forward).expand_as(directions)
    return Rays(origins.reshape(-1, 3), directions.reshape(-1, 3))


def project(camera: Camera, points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Project world points `[N, 3]` into the images; the inverse of `camera_rays`.

    Returns:
        Pixel coordinates `[B, N, 2]`, and the depth along the viewing axis `[B, N]`. A point at or
        behind the camera (depth <= 0) has no meaningful pixel.
    """
    right, up, forward = (axis[:, None, :] for axis in camera_frame(camera))
    offset = points[None] - camera_position(camera)[:, None, :]
    depth = (offset * forward).sum(-1)
    scale = focal_length(camera, height)[:, None] / depth.clamp_min(1e-6)
    x = 0.5 * width + scale * (offset * right).sum(-1)
    y = 0.5 * height - scale * (offset * up).sum(-1)
    return torch.stack([x, y], dim=-1), depth
