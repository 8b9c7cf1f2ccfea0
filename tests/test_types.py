"""The shared data types: exported files, refused shapes; and the examples of some docstrings."""

from __future__ import annotations

import doctest
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from vp3d import prompts, types
from vp3d.errors import UserError
from vp3d.guidance import view_gate
from vp3d.train import losses
from vp3d.types import Asset, Camera, Mesh, Rays, Render, to_images

TRIANGLE = Mesh(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]))


def test_path_of_an_exported_file(tmp_path: Path) -> None:
    (tmp_path / "model.glb").touch()
    asset = Asset("a cube", TRIANGLE, tmp_path)
    assert asset.path("glb") == tmp_path / "model.glb"


def test_a_missing_format_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    for name in ("model.glb", "model.obj", "model.mtl", "model.png", "preview.png"):
        (tmp_path / name).touch()
    (tmp_path / "model.ply").mkdir()
    with pytest.raises(UserError) as caught:
        Asset("a cube", TRIANGLE, tmp_path).path("ply")
    message = str(caught.value)
    assert "no model.ply; formats in this folder: glb, obj; " in message and "\n" not in message


def test_a_run_without_files_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="formats in this folder: none"):
        Asset("a cube", TRIANGLE, tmp_path / "deleted").path("glb")


@pytest.mark.parametrize("module", [types, prompts, view_gate, losses])
def test_the_examples_run(module: ModuleType) -> None:
    results = doctest.testmod(module)
    assert results.failed == 0 and results.attempted > 0


def test_wrong_shapes_are_refused() -> None:
    two, three = torch.zeros(2), torch.zeros(3)
    with pytest.raises(ValueError, match="one shape"):
        Camera(two, two, two, three)
    with pytest.raises(ValueError, match="one shape"):
        Camera(*[torch.zeros(2, 1)] * 4)
    with pytest.raises(ValueError, match="one shape"):
        Rays(torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="vertices"):
        Mesh(np.zeros((3, 2)), np.zeros((1, 3), int))
    with pytest.raises(ValueError, match="faces"):
        Mesh(np.zeros((3, 3)), np.zeros(3, int))
    with pytest.raises(ValueError, match="2 rows for 3 vertices"):
        Mesh(np.zeros((3, 3)), np.zeros((1, 3), int), uv=np.zeros((2, 2)))


def test_slices_of_cameras_and_rays() -> None:
    degrees = torch.arange(4.0)
    camera = Camera(degrees, degrees, degrees, degrees)
    assert len(camera) == 4 and camera[1:3].azimuth_deg.tolist() == [1.0, 2.0]
    rays = Rays(torch.zeros(4, 3), torch.eye(3)[[0, 1, 2, 0]])
    assert rays[torch.tensor([0, 2])].directions.tolist() == [[1, 0, 0], [0, 0, 1]]


def test_a_render_over_a_background_by_hand() -> None:
    render = Render(torch.tensor([[0.2, 0.0, 0.1]]), torch.tensor([0.25]), torch.tensor([1.0]))
    expected = torch.tensor([[0.2 + 0.75 * 0.4, 0.75 * 0.6, 0.1 + 0.75 * 0.8]])
    torch.testing.assert_close(render.over(torch.tensor([0.4, 0.6, 0.8])), expected)


def test_flat_values_as_images_are_row_major() -> None:
    values = torch.arange(12.0)
    assert to_images(values, 2, 2, 3)[1, 0].tolist() == [[6, 7, 8], [9, 10, 11]]
