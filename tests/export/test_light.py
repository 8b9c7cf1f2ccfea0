"""The light in the colours of a mesh: fitted, taken out, put back, and left where doubtful."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vp3d.export.light import Light, fit, fit_light, light_of, with_light, without_light
from vp3d.export.mesh_data import vertex_normals_of
from vp3d.metrics.colors import ciede2000
from vp3d.render.shade import LIGHT_DIRECTION, lambert_shade
from vp3d.types import Mesh

RED, WHITE = np.array([0.8, 0.2, 0.15]), np.array([0.9, 0.9, 0.9])


def lit_ball(count: int = 3000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normals over a sphere, and its unlit and lit colours: red below y = 0, white above."""
    import torch

    normals = np.random.default_rng(0).normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    albedo = np.where(normals[:, 1:2] > 0, WHITE, RED)
    return normals, albedo, albedo * lambert_shade(torch.from_numpy(normals)).numpy()[:, None]


def test_the_lamp_of_the_embedded_world_is_found_on_a_two_coloured_ball() -> None:
    normals, albedo, colors = lit_ball()
    light = fit(colors, normals, np.ones(len(normals)))
    assert light.doubt == "" and light.explained > 0.9
    assert light.direction @ np.array(LIGHT_DIRECTION) > np.cos(np.deg2rad(10.0))
    bare = np.clip(colors / light.shade(normals)[:, None], 0, 1)
    before = np.median(ciede2000(colors, albedo))
    after = np.median(ciede2000(bare, albedo))
    assert before > 5.0 and after < 2.0


def test_colours_without_light_stay_as_they_are() -> None:
    normals, _, _ = lit_ball()
    light = fit(np.tile([0.5, 0.4, 0.3], (3000, 1)), normals, np.ones(3000))
    assert light.doubt == "" and np.all(light.shade(normals) == 1.0)


def test_a_pattern_that_no_lamp_explains_is_doubted() -> None:
    """Stripes of eight greys along x, with a weak trend."""
    normals, _, _ = lit_ball()
    stripes = 0.35 + 0.3 * np.sin(25.0 * normals[:, :1]) + 0.05 * normals[:, :1]
    assert "explains only" in fit(np.tile(stripes, 3), normals, np.ones(3000)).doubt


def test_a_light_that_would_leave_nothing_on_the_far_side_is_doubted() -> None:
    normals, _, _ = lit_ball()
    colors = np.exp(1.2 * (normals[:, 2:] - 1.0)) * np.array([[0.9, 0.8, 0.7]])
    assert "far side" in fit(colors, normals, np.ones(len(normals))).doubt


def test_black_objects_have_no_fit() -> None:
    normals, _, _ = lit_ball()
    assert fit(np.full((3000, 3), 0.01), normals, np.ones(3000)).doubt != ""


@pytest.mark.parametrize("gradient", [(0.1, 0.05, -0.1), (0.3, 0.2, 0.1), (0.0, 0.0, 0.0)])
def test_a_light_is_found_again_in_its_figures(gradient: tuple[float, ...]) -> None:
    normals, _, _ = lit_ball()
    light = Light(np.array(gradient), 0.5)
    again = light_of(light.figures())
    assert again is not None
    np.testing.assert_allclose(again.shade(normals), light.shade(normals), atol=3e-3)


def test_a_light_that_was_not_used_is_not_found_again() -> None:
    assert light_of(Light(np.array([0.9, 0.0, 0.0]), 0.5, "too strong").figures()) is None
    assert light_of({"kind": "mesh", "faces": 9}) is None


@pytest.mark.parametrize("textured", [True, False])
def test_light_taken_out_and_put_back_is_the_same_mesh(textured: bool, sided: Mesh) -> None:
    import torch

    shade = lambert_shade(torch.from_numpy(vertex_normals_of(sided))).numpy()[:, None]
    mesh = replace(sided, vertex_colors=0.8 * sided.vertex_colors * shade)
    if not textured:
        mesh = replace(mesh, uv=None, texture=None)
    light = fit_light(mesh)
    bare = without_light(mesh, light)
    back = with_light(bare, light)
    assert light.doubt == ""
    np.testing.assert_allclose(back.vertex_colors, mesh.vertex_colors, atol=0.01)
    if textured:
        assert not np.array_equal(bare.texture, mesh.texture)
        inside = (bare.texture < 255).all(-1)
        np.testing.assert_allclose(
            back.texture[inside].astype(int), mesh.texture[inside].astype(int), atol=1
        )
