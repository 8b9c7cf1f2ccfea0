"""The soft renderer: values by hand and by naive versions, gradients by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from vp3d.export.uv import unwrap_cells
from vp3d.render import raster_soft
from vp3d.render.camera import orbit, project, ring
from vp3d.render.raster import rasterize_reference, render_mesh
from vp3d.render.raster_soft import (
    Topology,
    render_soft,
    sample,
    topology_of,
    visible_faces,
)
from vp3d.types import Camera, Mesh


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def ball(subdivisions: int = 3) -> tuple[Tensor, Topology]:
    body = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.6)
    vertices = torch.from_numpy(np.asarray(body.vertices, np.float32).copy())
    return vertices, cells(np.asarray(body.faces, np.int64))


def cells(faces: np.ndarray) -> Topology:
    atlas = unwrap_cells(faces, 256)
    return topology_of(faces, atlas.uv[atlas.faces])


def box() -> tuple[Tensor, Topology, Tensor]:
    """A box of 12 faces whose colour is a smooth function of the place, also across its edges."""
    body = trimesh.creation.box((0.9, 0.7, 0.8))
    vertices = torch.from_numpy(np.asarray(body.vertices, np.float32).copy())
    faces = np.asarray(body.faces, np.int64)
    # every corner has the texel of its own vertex in an 8 x 1 ramp: colours are linear in a face
    uv = np.stack([(faces + 0.5) / 8.0, np.full(faces.shape, 0.5)], -1)
    texture = torch.linspace(0.1, 0.9, 8)[None, None].expand(3, 8, 8).clone()
    texture = texture * torch.tensor([1.0, 0.7, 0.4])[:, None, None]
    return vertices, topology_of(faces, uv), texture


def weights_of(shape: tuple[int, ...], seed: int) -> Tensor:
    """Smooth random weights of pictures: a loss whose gradient has no special direction."""
    coarse = torch.randn((*shape[:2], 5, 5), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, shape[-2:], mode="bicubic", align_corners=False)


def naive_faces(corners: Tensor, z: Tensor, size: int) -> np.ndarray:
    """Every face at every pixel of one view, in plain loops over faces."""
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1) + 0.5
    nearest, found = np.zeros((size, size)), np.full((size, size), -1)
    for f, ((a, b, c), depth) in enumerate(zip(corners.double().numpy(), z.numpy(), strict=True)):
        matrix = np.array([[*a, 1.0], [*b, 1.0], [*c, 1.0]]).T
        if abs(np.linalg.det(matrix)) < 1e-14 or depth.min() <= 1e-3:
            continue
        homogeneous = np.concatenate([grid, np.ones((size, size, 1))], -1)
        weights = homogeneous @ np.linalg.inv(matrix).T
        inverse = (weights / depth).sum(-1)
        wins = (weights.min(-1) >= 0) & (inverse > nearest)
        nearest[wins], found[wins] = inverse[wins], f
    return found


def test_both_visibilities_and_a_naive_one_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(1, 40, 1, 2, generator=generator) * 24.0
    corners = corners + torch.rand(1, 40, 3, 2, generator=generator) * 16.0 - 8.0
    z = torch.rand(1, 40, 3, generator=generator) + 1.0
    z[0, 3] = -1.0  # behind the camera
    fast, plain = (visible_faces(corners, z, 24, compiled)[0] for compiled in (True, False))
    assert torch.equal(fast, plain) and (fast >= 0).float().mean() > 0.5
    assert (fast.numpy() == naive_faces(corners[0], z[0], 24)).mean() > 0.998


@pytest.mark.parametrize("size", [64, 128, 256])
def test_visibility_is_equal_on_all_but_one_pixel_in_ten_thousand(size: int) -> None:
    vertices, topology = ball(4)
    camera = orbit([0.0, 33.0, 171.0, 260.0], [0.0, 30.0, -20.0, 88.0], 2.9, 40.0)
    xy, z = project(camera, vertices, size, size)
    corners, depth = xy[:, topology.faces], z[:, topology.faces]
    fast, plain = (visible_faces(corners, depth, size, compiled) for compiled in (True, False))
    assert (fast == plain).float().mean() >= 0.9999


def test_few_pairs_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vertices, topology = ball(2)
    xy, z = project(ring(2, 20.0, 2.9, 40.0), vertices, 40, 40)
    corners, depth = xy[:, topology.faces], z[:, topology.faces]
    at_once = visible_faces(corners, depth, 40, compiled=False)
    monkeypatch.setattr(raster_soft, "MAX_PAIRS", 50)
    assert torch.equal(at_once, visible_faces(corners, depth, 40, compiled=False))


def test_the_visible_face_is_that_of_ray_casting() -> None:
    vertices, topology = ball(1)
    camera = ring(1, 25.0, 2.9, 40.0)
    mesh = Mesh(vertices.numpy(), topology.faces.numpy())
    slow = rasterize_reference(mesh, camera, 32, 32).face_index
    picture = render_soft(vertices, topology, torch.ones(3, 8, 8), camera, 32)
    assert (picture.face_index == slow).float().mean() > 0.998


def test_fast_and_plain_agree_in_value_and_gradient() -> None:
    start, topology = ball()
    camera = orbit([10.0, 200.0], [5.0, 30.0], 2.9, 40.0)
    generator = torch.Generator().manual_seed(1)
    paint = torch.rand(3, 64, 64, generator=generator)
    found = []
    for visibility in ("numba", "torch"):
        vertices, texture = start.clone().requires_grad_(), paint.clone().requires_grad_()
        picture = render_soft(vertices, topology, texture, camera, 96, visibility)
        loss = (picture.over(0.7) * weights_of(picture.rgb.shape, 2)).sum()
        loss = loss + (picture.opacity * weights_of(picture.opacity.shape, 3)).sum()
        loss.backward()
        assert vertices.grad is not None and texture.grad is not None
        found.append((picture.rgb.detach(), picture.opacity.detach(), vertices.grad, texture.grad))
    for fast, plain in zip(*found, strict=True):
        assert (fast - plain).abs().max() <= 1e-3 * plain.abs().max()
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4)


def test_inside_it_is_the_picture_of_the_other_rasteriser() -> None:
    vertices, topology = ball()
    texture = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(4))
    pixels = (texture.permute(1, 2, 0) * 255.0).round().to(torch.uint8)
    corners = topology.faces.reshape(-1)
    mesh = Mesh(
        vertices[corners].numpy(),
        np.arange(len(corners)).reshape(-1, 3),
        uv=topology.uv.reshape(-1, 2).numpy(),
        texture=pixels.numpy(),
    )
    camera = ring(2, 15.0, 2.9, 40.0)
    rgb, opacity = render_mesh(mesh, camera, 64, 64, 0.7, supersample=1)
    soft = render_soft(vertices, topology, pixels.permute(2, 0, 1) / 255.0, camera, 64)
    deep = (soft.opacity == 1.0) & (opacity == 1.0)
    assert deep.float().mean() > 0.15
    gap = (soft.over(0.7) - rgb).abs() * deep
    assert float(gap.max()) < 2e-3
    assert float((soft.opacity - opacity).abs().mean()) < 0.03


def central(loss: Callable[[Tensor], Tensor], at: Tensor, way: Tensor, step: float) -> float:
    return float(loss(at + step * way) - loss(at - step * way)) / (2.0 * step)


@pytest.mark.parametrize("visibility", ["numba", "torch"])
@pytest.mark.parametrize("what", ["colour", "coverage"])
def test_gradients_are_those_of_finite_differences(what: str, visibility: str) -> None:
    vertices, topology, texture = box()
    camera = orbit([25.0, 140.0], [20.0, 40.0], 2.9, 40.0)

    def loss(positions: Tensor) -> Tensor:
        picture = render_soft(positions, topology, texture, camera, 96, visibility)
        shown = picture.over(0.6) if what == "colour" else picture.opacity
        return (shown * weights_of(tuple(shown.shape), 5)).double().sum()

    at = vertices.clone().requires_grad_()
    loss(at).backward()
    assert at.grad is not None
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for _ in range(6):
            way = torch.randn(vertices.shape, generator=generator)
            expected = central(loss, vertices, way, 2.0e-3)
            assert float((at.grad * way).sum()) == pytest.approx(expected, rel=0.05, abs=0.05)


def test_the_gradient_of_the_texture_is_exact() -> None:
    vertices, topology, texture = box()
    camera = ring(1, 20.0, 2.9, 40.0)

    def loss(paint: Tensor) -> Tensor:
        picture = render_soft(vertices, topology, paint, camera, 48).rgb
        return (picture * weights_of(tuple(picture.shape), 7)).double().sum()

    at = texture.clone().requires_grad_()
    loss(at).backward()
    assert at.grad is not None
    way = torch.randn(texture.shape, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        assert float((at.grad * way).sum()) == pytest.approx(
            central(loss, texture, way, 0.1), rel=1e-3
        )


def test_a_texture_is_sampled_as_by_hand() -> None:
    texture = torch.arange(12.0).reshape(3, 2, 2)
    uv = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.75, 0.25], [-1.0, 2.0]])
    by_hand = torch.tensor([[0.0, 4.0, 8.0], [1.5, 5.5, 9.5], [3.0, 7.0, 11.0], [0.0, 4.0, 8.0]])
    torch.testing.assert_close(sample(texture, uv), by_hand)


def test_edges_know_the_faces_on_both_sides() -> None:
    faces = np.array([[0, 1, 2], [2, 1, 3]])
    topology = topology_of(faces, np.zeros((2, 3, 2)))
    found = dict(zip(map(tuple, topology.edges.tolist()), topology.sides.tolist(), strict=True))
    assert found == {(0, 1): [0, -1], (0, 2): [0, -1], (1, 2): [0, 1], (1, 3): [1, -1],
                     (2, 3): [1, -1]}  # fmt: skip


def test_coverage_is_soft_only_around_the_border() -> None:
    vertices, topology = ball()
    picture = render_soft(vertices, topology, torch.ones(3, 8, 8), ring(1, 0.0, 2.9, 40.0), 96)
    opacity, mask = picture.opacity[0, 0], picture.face_index[0] >= 0
    assert bool(((opacity > 0.5) == mask).all()), "the border is where half a pixel is covered"
    soft = (opacity > 0.0) & (opacity < 1.0)
    row, column = torch.nonzero(soft, as_tuple=True)
    radius = torch.stack([column + 0.5 - 48.0, row + 0.5 - 48.0]).norm(dim=0)
    assert radius.max() - radius.min() < 2.0 * raster_soft.BAND + 0.5
    area = float(opacity.sum()) / float(mask.sum())
    assert area == pytest.approx(1.0, abs=0.01), "what is lost inside is won outside"


def test_nothing_to_see_is_an_empty_picture() -> None:
    vertices, topology = ball(1)
    camera = Camera(*(torch.tensor([value]) for value in (0.0, 0.0, 2.9, 40.0)))
    far = (vertices + torch.tensor([0.0, 50.0, 0.0])).requires_grad_()
    picture = render_soft(far, topology, torch.ones(3, 8, 8), camera, 16)
    assert float(picture.opacity.detach().sum()) == 0.0 and bool((picture.face_index == -1).all())
    assert float(picture.over(torch.tensor([0.25])).detach().mean()) == 0.25
    picture.rgb.sum().backward()
    assert far.grad is None or float(far.grad.abs().sum()) == 0.0


def test_shrinking_averages_blocks() -> None:
    vertices, topology = ball(2)
    picture = render_soft(vertices, topology, torch.ones(3, 8, 8), ring(1, 0.0, 2.9, 40.0), 64)
    small = picture.shrunk(16)
    assert small.rgb.shape == (1, 3, 16, 16) and small.face_index.shape == (1, 16, 16)
    assert float(small.opacity.mean()) == pytest.approx(float(picture.opacity.mean()), rel=1e-5)
    assert picture.shrunk(64) is picture
