"""Level sets, pieces, cleaning, decimation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import trimesh

from vp3d.errors import EmptyFieldError, UserError
from vp3d.export import marching_cubes, repair, surface, threshold
from vp3d.types import Camera, Mesh


def grid_of(scene: object, cells: int = 40) -> np.ndarray:
    return marching_cubes.density_grid(scene.density, cells, chunk=5000)


def pieces(mesh: Mesh) -> int:
    return len(np.unique(repair.components(mesh)))


def test_grid_nodes_are_indexed_x_y_z_and_cover_the_cube() -> None:
    grid = marching_cubes.density_grid(
        lambda x: (x[:, 0] + 1) * 100 + (x[:, 1] + 1) * 10 + (x[:, 2] + 1), 4, chunk=7
    )
    assert grid.shape == (5, 5, 5)
    assert grid[0, 0, 0] == pytest.approx(0.0) and grid[4, 4, 4] == pytest.approx(222.0)
    assert grid[4, 0, 0] == pytest.approx(200.0) and grid[0, 4, 0] == pytest.approx(20.0)


def test_non_finite_density_counts_as_empty() -> None:
    grid = marching_cubes.density_grid(
        lambda x: torch.where(x[:, 0] > 0, torch.tensor(float("nan")), torch.tensor(-3.0)), 4
    )
    assert (grid == 0).all()


def test_sphere_keeps_its_radius_place_and_orientation(balls: type, cameras: Camera) -> None:
    scene = balls(((0.1, -0.2, 0.05), 0.6))
    made = surface.extract_surface(grid_of(scene), cameras, scene.opacity(cameras, 96), faces=1500)
    radii = np.linalg.norm(made.mesh.vertices - np.array([0.1, -0.2, 0.05]), axis=1)
    assert abs(radii.mean() - 0.6) < 0.02 * 0.6 and radii.std() < 0.01
    assert made.iou > 0.96
    assert repair.is_watertight(made.mesh)
    assert repair.face_measures(made.mesh)[1].sum() == pytest.approx(
        4 / 3 * np.pi * 0.6**3, rel=0.06
    )
    outward = ((made.mesh.vertices - np.array([0.1, -0.2, 0.05])) * made.mesh.normals).sum(
        1
    ) / radii
    assert outward.min() > 0.95
    np.testing.assert_allclose(np.linalg.norm(made.mesh.normals, axis=1), 1.0, atol=1e-5)


def test_threshold_follows_the_silhouette(cameras: Camera, balls: type) -> None:
    """Density falls linearly with the radius, so the silhouette decides which radius is chosen."""
    radii = (torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 41)] * 3, indexing="ij"), -1)).norm(
        dim=-1
    )
    grid = (10.0 * (1.0 - radii).clamp_min(0)).numpy()
    for radius in (0.4, 0.7):
        wanted = balls(((0.0, 0.0, 0.0), radius)).opacity(cameras, 96)
        made = threshold.choose_threshold(grid, cameras, wanted)
        assert made.threshold == pytest.approx(10.0 * (1.0 - radius), rel=0.2)
        assert made.iou > 0.9


def test_two_objects_stay_and_a_floater_goes(balls: type) -> None:
    scene = balls(((0.0, -0.45, 0.0), 0.35), ((0.0, 0.45, 0.0), 0.3), ((0.8, 0.0, 0.8), 0.06))
    raw = marching_cubes.marching_cubes(grid_of(scene, 64), 40.0)
    assert pieces(raw) == 3
    kept = repair.drop_floaters(raw)
    assert pieces(kept) == 2
    assert (
        abs(kept.vertices[:, 2]).max() < 0.4
        and kept.vertices[:, 1].min() < -0.7
        and kept.vertices[:, 1].max() > 0.7
    )


def test_a_cavity_goes() -> None:
    axis = np.linspace(-1, 1, 49)
    radius = np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1), axis=-1)
    shell = 10.0 * ((radius < 0.7) & (radius > 0.4)).astype(np.float32)
    raw = marching_cubes.marching_cubes(shell, 5.0)
    kept = repair.drop_floaters(raw)
    assert pieces(raw) == 2 and pieces(kept) == 1
    assert np.linalg.norm(kept.vertices, axis=1).min() > 0.6


def test_matter_at_the_border_is_closed_inside_the_cube() -> None:
    mesh = repair.clean(marching_cubes.marching_cubes(np.full((17, 17, 17), 9.0, np.float32), 3.0))
    assert repair.is_watertight(mesh)
    assert abs(mesh.vertices).max() <= 1.0
    assert repair.face_measures(mesh)[1].sum() == pytest.approx(8.0, rel=0.05)


def test_smoothing_takes_noise_off_and_keeps_the_volume() -> None:
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.6)
    noise = np.random.default_rng(0).normal(0, 0.01, ball.vertices.shape)
    rough = Mesh((ball.vertices + noise).astype(np.float32), np.asarray(ball.faces, np.int64))
    fair = surface.smooth(rough, 6)
    spread = [np.linalg.norm(m.vertices, axis=1).std() for m in (rough, fair)]
    volume = [repair.face_measures(m)[1].sum() for m in (rough, fair)]
    assert spread[1] < 0.5 * spread[0]
    assert volume[1] == pytest.approx(volume[0], rel=0.01)


@pytest.mark.parametrize("faces", [60, 400, 2000])
def test_decimation_respects_the_limit_and_keeps_the_mesh_closed(faces: int) -> None:
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.6)
    mesh = repair.clean(
        surface.decimate(
            Mesh(np.asarray(ball.vertices, np.float32), np.asarray(ball.faces, np.int64)), faces
        )
    )
    assert 0.5 * faces < len(mesh.faces) <= faces
    assert repair.is_watertight(mesh)


@pytest.mark.parametrize("faces", [1, 2, 3])
def test_a_limit_of_few_faces_is_not_that_of_none(faces: int) -> None:
    ball = trimesh.creation.icosphere(subdivisions=2)
    mesh = Mesh(np.asarray(ball.vertices, np.float32), np.asarray(ball.faces, np.int64))
    assert len(surface.decimate(mesh, faces).faces) <= 4 < len(mesh.faces)


def test_zero_faces_keeps_all() -> None:
    ball = trimesh.creation.icosphere(subdivisions=2)
    mesh = Mesh(np.asarray(ball.vertices, np.float32), np.asarray(ball.faces, np.int64))
    assert surface.decimate(mesh, 0) is mesh


def test_clean_turns_an_inside_out_mesh_and_closes_a_hole() -> None:
    ball = trimesh.creation.icosphere(subdivisions=2)
    mesh = repair.clean(
        Mesh(np.asarray(ball.vertices, np.float32), np.asarray(ball.faces[1:, ::-1], np.int64))
    )
    assert repair.is_watertight(mesh)
    assert repair.face_measures(mesh)[1].sum() > 0


@pytest.mark.parametrize(("level", "opacity"), [(0.0, 1.0), (1e-3, 0.002), (1e-3, float("nan"))])
def test_an_empty_field_is_a_user_error_with_a_histogram(
    level: float, opacity: float, cameras: Camera
) -> None:
    with pytest.raises(EmptyFieldError) as caught:
        threshold.choose_threshold(
            np.full((9, 9, 9), level, np.float32), cameras, torch.full((4, 16, 16), opacity)
        )
    assert caught.value.code == "empty_field"
    assert "<0.01: 100.0%" in str(caught.value) and "\n" not in str(caught.value)


def test_a_faint_field_still_gives_its_shape(balls: type, cameras: Camera) -> None:
    scene = balls(((0.0, 0.0, 0.0), 0.5))
    made = threshold.choose_threshold(
        0.001 * grid_of(scene), cameras, 0.2 * scene.opacity(cameras, 64)
    )
    assert made.iou > 0.95


def test_export_tells_its_figures(export: Callable[..., Mesh], balls: type) -> None:
    figures: dict[str, object] = {}
    mesh = export(
        balls(((0.0, 0.0, 0.0), 0.5)),
        event=lambda kind, **data: figures.update(kind=kind, **data),
        faces=300,
    )
    assert figures["kind"] == "mesh" and figures["faces"] == len(mesh.faces) <= 300
    assert (
        figures["watertight"] is True
        and figures["atlas"] == "xatlas"
        and figures["silhouette_iou"] > 0.95
    )


def edge_uses(mesh: Mesh) -> list[int]:
    """How many faces each edge has, every value once."""
    edges = np.sort(mesh.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1)
    return sorted(set(np.unique(edges, axis=0, return_counts=True)[1].tolist()))


def test_doubled_faces_cancel_by_winding() -> None:
    faces = np.array([[0, 1, 2], [2, 1, 0], [3, 4, 5], [4, 5, 3], [7, 6, 8], [9, 9, 1], [1, 2, 3]])
    kept = {
        tuple(np.roll(face, -int(face.argmin()))) for face in repair.cancel_doubled_faces(faces)
    }
    assert kept == {(3, 4, 5), (6, 8, 7), (1, 2, 3)}


@pytest.mark.parametrize("shift", [(0.4, 0.4, 0.0), (0.4, 0.4, 0.4)])
def test_boxes_that_touch_in_an_edge_or_a_corner_are_parted(
    shift: tuple[float, float, float],
) -> None:
    box = trimesh.creation.box((0.4, 0.4, 0.4))
    touching = Mesh(
        np.r_[box.vertices, box.vertices + shift].astype(np.float32),
        np.r_[box.faces, box.faces + len(box.vertices)],
    )
    parted = repair.clean(touching)
    assert repair.is_watertight(parted) and edge_uses(parted) == [2] and pieces(parted) == 2
    assert repair.face_measures(parted)[1].sum() == pytest.approx(2 * 0.4**3, rel=0.01)
    assert len(np.unique(parted.vertices, axis=0)) == 16


def test_a_rough_decimated_surface_is_still_closed(balls: type, cameras: Camera) -> None:
    scene = balls(((0.0, 0.0, 0.0), 0.55))
    noise = np.random.default_rng(3).normal(0, 0.5, (41, 41, 41))
    grid = (grid_of(scene) * np.exp(noise)).astype(np.float32)
    made = surface.extract_surface(grid, cameras, scene.opacity(cameras, 64), faces=900)
    assert repair.is_watertight(made.mesh) and edge_uses(made.mesh) == [2]
    assert len(made.mesh.faces) <= 900 and made.iou > 0.85


def torus(x: torch.Tensor) -> torch.Tensor:
    """Density 10 inside a ring of radius 0.5 and thickness 0.12 around z."""
    around = (x[:, :2].norm(dim=1) - 0.5).square() + x[:, 2].square()
    return 10.0 * (around < 0.12**2).float()


@pytest.mark.parametrize("faces", [1, 2, 3, 4, 6, 8, 10])
def test_a_face_budget_that_is_too_small_is_named_and_not_an_empty_field(
    faces: int, cameras: Camera
) -> None:
    """Where so few triangles enclose anything they are a mesh, else the setting is named."""
    grid = marching_cubes.density_grid(torus, 40)
    mesh = surface.extract_surface(grid, cameras, opacity_of(grid, cameras), 0).mesh
    try:
        found = surface.extract_surface(grid, cameras, opacity_of(grid, cameras), faces).mesh
    except UserError as error:
        assert f"export.faces={faces} is too few" in str(error)
        assert f"{len(mesh.faces):,} triangles" in str(error)
    else:
        assert 4 <= len(found.faces) <= faces and repair.is_watertight(found)


def opacity_of(grid: np.ndarray, cameras: Camera) -> torch.Tensor:
    """The silhouettes of the surface of a grid, as the opacity of its field."""
    mesh = marching_cubes.marching_cubes(grid, 5.0)
    return (threshold.rasterize(mesh, cameras, 48, 48).face_index >= 0).float()
