"""Cameras: hand values of the frame, `project` as the inverse of the rays, random cameras."""

from __future__ import annotations

import math

import pytest
import torch

from vp3d.config.schema import CameraConfig
from vp3d.render.camera import (
    camera_frame,
    camera_position,
    camera_rays,
    orbit,
    project,
    ring,
    sample_cameras,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(value: torch.Tensor, expected: list[float], atol: float = 1e-6) -> bool:
    return torch.allclose(value, torch.tensor(expected, dtype=torch.float32), atol=atol)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "position"),
    [
        (0, 0, [2, 0, 0]),
        (90, 0, [0, 2, 0]),
        (180, 0, [-2, 0, 0]),
        (270, 0, [0, -2, 0]),
        (0, 90, [0, 0, 2]),
        (0, -90, [0, 0, -2]),
    ],
)
def test_position_by_hand(azimuth: float, elevation: float, position: list[float]) -> None:
    assert close(camera_position(orbit(azimuth, elevation, 2.0, 40.0))[0], position)


def test_frame_by_hand_and_orthonormal() -> None:
    right, up, forward = camera_frame(orbit([0.0, 90.0], 0.0, 2.0, 40.0))
    assert close(right[0], [0, 1, 0]) and close(up[0], [0, 0, 1]) and close(forward[0], [-1, 0, 0])
    assert close(right[1], [-1, 0, 0]) and close(up[1], [0, 0, 1]) and close(forward[1], [0, -1, 0])
    frame = torch.stack(
        camera_frame(orbit([10.0, 200.0, 77.0], [35.0, -20.0, 90.0], 3.0, 30.0)), dim=1
    )
    assert torch.allclose(frame @ frame.transpose(1, 2), torch.eye(3).expand(3, 3, 3), atol=1e-6)
    assert torch.allclose(torch.linalg.cross(frame[:, 0], frame[:, 1]), -frame[:, 2], atol=1e-6)


def test_azimuth_90_sees_plus_y_in_the_middle_and_the_front_on_its_left() -> None:
    camera = orbit(90.0, 0.0, 3.0, 40.0)
    pixel, depth = project(
        camera,
        torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.5]]),
        64,
        64,
    )
    assert depth[0].tolist() == pytest.approx([2.0, 4.0, 3.0, 3.0], abs=1e-5)
    assert close(pixel[0, 0], [32, 32], 1e-4)
    # The front (+x) is to the left, the top (+z) above.
    assert pixel[0, 2, 0] < 31 and pixel[0, 3, 1] < 31


def test_rays_are_unit_and_row_major_with_the_field_of_view_vertical() -> None:
    rays = camera_rays(orbit([0.0, 120.0], [0.0, 30.0], 2.5, 50.0), 4, 6)
    assert len(rays) == 2 * 4 * 6
    assert torch.allclose(rays.directions.norm(dim=-1), torch.ones(48), atol=1e-6)
    first = rays.directions[0]  # azimuth 0, row 0, column 0: left of the image is -y, top is +z
    focal = 2.0 / math.tan(math.radians(25.0))
    expected = torch.tensor([-1.0, -2.5 / focal, 1.5 / focal])
    assert torch.allclose(first, expected / expected.norm(), atol=1e-6)
    assert rays.directions[1, 1] > first[1] and rays.directions[6, 2] < first[2]


def test_project_is_the_inverse_of_camera_rays() -> None:
    height, width = 5, 8
    camera = orbit([0.0, 90.0, 213.0], [0.0, 80.0, -30.0], [2.0, 3.0, 4.0], [30.0, 50.0, 70.0])
    rays = camera_rays(camera, height, width)
    points = (rays.origins + 1.7 * rays.directions).reshape(3, -1, 3)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    expected = torch.stack([x, y], dim=-1).reshape(-1, 2)
    for b in range(3):
        pixel, depth = project(camera[b : b + 1], points[b], height, width)
        assert torch.allclose(pixel[0], expected, atol=1e-3)
        cosine = (rays.directions.reshape(3, -1, 3)[b] * camera_frame(camera)[2][b]).sum(-1)
        assert torch.allclose(depth[0], 1.7 * cosine, atol=1e-5)


def test_points_behind_the_camera_have_finite_pixels_and_negative_depth() -> None:
    pixel, depth = project(
        orbit(0.0, 0.0, 2.0, 40.0), torch.tensor([[3.0, 0.0, 0.0], [2.0, 0.0, 0.0]]), 8, 8
    )
    assert torch.isfinite(pixel).all() and depth[0, 0] < 0


def test_sampled_cameras_are_stratified_in_range_and_reproducible() -> None:
    config = CameraConfig()
    camera = sample_cameras(8, config, seeded(3))
    again = sample_cameras(8, config, seeded(3))
    assert torch.equal(camera.azimuth_deg, again.azimuth_deg) and torch.equal(
        camera.elevation_deg, again.elevation_deg
    )
    assert (camera.azimuth_deg >= 0).all() and (camera.azimuth_deg < 360).all()
    assert (camera.elevation_deg >= config.elevation_min_deg).all() and (
        camera.elevation_deg <= config.elevation_max_deg
    ).all()
    gaps = camera.azimuth_deg.sort().values.diff()
    assert gaps.max() < 2 * 360 / 8  # neighbours lie in neighbouring sectors
    assert (camera.distance == config.distance).all() and (camera.fov_deg == config.fov_deg).all()


def test_sampled_cameras_by_hand() -> None:
    """Sector n, its jitter, one offset for all; then the elevations."""
    config, draws = CameraConfig(elevation_min_deg=-10.0, elevation_max_deg=50.0), seeded(5)
    offset = float(torch.rand(1, generator=draws))
    jitter, height = (torch.rand(3, generator=draws).tolist() for _ in range(2))
    camera = sample_cameras(3, config, seeded(5))
    azimuth = [(120.0 * (n + jitter[n]) + 360.0 * offset) % 360.0 for n in range(3)]
    assert camera.azimuth_deg.tolist() == pytest.approx(azimuth, abs=1e-3)
    assert camera.elevation_deg.tolist() == pytest.approx([60.0 * h - 10.0 for h in height])


def test_single_cameras_reach_every_azimuth() -> None:
    generator = seeded()
    azimuth = torch.cat(
        [sample_cameras(1, CameraConfig(), generator).azimuth_deg for _ in range(400)]
    )
    counts = torch.histc(azimuth, bins=8, min=0, max=360)
    assert counts.min() > 25 and counts.max() < 80  # 50 expected, standard deviation 6.6


def test_ring_and_orbit_shapes() -> None:
    assert ring(4, 10.0, 3.0, 40.0).azimuth_deg.tolist() == [0, 90, 180, 270]
    assert len(orbit([1.0, 2.0], [3.0, 4.0], 5.0, 6.0)) == 2
    with pytest.raises(ValueError, match="one length"):
        orbit([1.0, 2.0], [3.0, 4.0, 5.0], 5.0, 6.0)
