"""Colours from the field onto the mesh."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vp3d.export import bake
from vp3d.render.camera import orbit
from vp3d.render.raster import render_mesh
from vp3d.types import Mesh


class Onion:
    """A solid half-space z < 0 whose colour changes at z = -0.1, with thin dark fog above it."""

    def __init__(self, density: float) -> None:
        self.inner = density

    def density(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 2] < 0, self.inner, 1e-3)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skin, core = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
        color = torch.where(x[:, 2:] < -0.1, core, torch.where(x[:, 2:] < 0, skin, torch.zeros(3)))
        return self.density(x), color


POINT, UP = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]])


def test_a_dense_skin_hides_what_is_under_it() -> None:
    color = bake.surface_color(Onion(500.0), POINT, UP, cell=0.05)
    torch.testing.assert_close(color, torch.tensor([[0.0, 1.0, 0.0]]), atol=0.01, rtol=0)


def test_a_thin_skin_lets_the_core_through_as_the_volume_integral_says() -> None:
    """Compared with the closed form: skin from 0 to -0.1, core from there to the last sample."""
    sigma, cell = 8.0, 0.05
    end = bake.INSIDE * cell
    skin, core = 1 - np.exp(-sigma * 0.1), np.exp(-sigma * 0.1) - np.exp(-sigma * end)
    color = bake.surface_color(Onion(sigma), POINT, UP, cell=cell)[0]
    assert float(color[0]) == pytest.approx(core / (skin + core), abs=0.06)
    assert float(color[1]) == pytest.approx(skin / (skin + core), abs=0.06)


def test_no_density_takes_the_colour_at_the_point() -> None:
    color = bake.surface_color(Onion(0.0), torch.tensor([[0.0, 0.0, -0.05]]), UP, cell=0.01)
    torch.testing.assert_close(color, torch.tensor([[0.0, 1.0, 0.0]]))


def test_chunks_do_not_change_the_colours(balls: type) -> None:
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    field, normals = balls(((0.0, 0.0, 0.0), 0.6)), torch.nn.functional.normalize(points, dim=-1)
    whole, parts = (bake.surface_color(field, points, normals, 0.05, chunk) for chunk in (1000, 7))
    torch.testing.assert_close(whole, parts)


def test_dilate_is_the_nearest_covered_pixel() -> None:
    rng = np.random.default_rng(1)
    image, covered = rng.random((12, 9, 3)), rng.random((12, 9)) < 0.2
    filled = bake.dilate(image, covered)
    np.testing.assert_array_equal(filled[covered], image[covered])
    pixels = np.argwhere(covered)
    for i, j in np.argwhere(~covered):
        distance = ((pixels - (i, j)) ** 2).sum(1)
        nearest = [image[a, b].tolist() for a, b in pixels[distance == distance.min()]]
        assert filled[i, j].tolist() in nearest


def test_texture_has_no_ground_colour_left_and_is_red_at_plus_y(sided: Mesh) -> None:
    texture = sided.texture
    assert texture is not None and texture.shape == (128, 128, 3) and texture.dtype == np.uint8
    assert (texture.max(-1) > 180).all()
    side = orbit([90.0, 270.0], 0.0, 2.9, 40.0)
    rgb, opacity = render_mesh(sided, side, 48, 48)
    left, right = (rgb[b, :, 16:32, 16:32].mean((1, 2)) for b in range(2))
    torch.testing.assert_close(left, torch.tensor([0.9, 0.1, 0.1]), atol=0.02, rtol=0)
    torch.testing.assert_close(right, torch.tensor([0.9, 0.8, 0.1]), atol=0.02, rtol=0)
    assert opacity[:, 0, 24, 24].tolist() == [1.0, 1.0]


def test_bake_asks_for_what_it_needs(balls: type) -> None:
    bare = Mesh(np.zeros((3, 3), np.float32), np.array([[0, 1, 2]]))
    with pytest.raises(ValueError, match="uv"):
        bake.bake_texture(balls(), bare, 8, 0.1)
    with pytest.raises(ValueError, match="normals"):
        bake.bake_vertex_colors(balls(), bare, 0.1)
