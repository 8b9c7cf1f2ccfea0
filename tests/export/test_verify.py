"""Figures of a written file against reference pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.assets import asset_of
from vp3d.export.formats import WRITERS
from vp3d.export.glb import write_glb
from vp3d.export.verify import psnr, verify_export
from vp3d.render.raster import render_mesh
from vp3d.types import Camera, Mesh


def test_psnr_by_hand() -> None:
    assert psnr(torch.zeros(4), torch.full((4,), 0.1)) == pytest.approx(20.0, abs=1e-4)
    assert psnr(torch.ones(4), torch.ones(4)) == 99.0


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_a_file_agrees_with_the_renders_of_its_mesh(
    kind: str, sided: Mesh, cameras: Camera, tmp_path: Path
) -> None:
    rgb, opacity = render_mesh(sided, cameras, 48, 48, background=0.5)
    WRITERS[kind](asset_of(sided), tmp_path / f"m.{kind}")
    figures = verify_export(tmp_path / f"m.{kind}", cameras, rgb, opacity, background=0.5)
    assert figures["iou"] > 0.995
    assert ("psnr" in figures) == (kind != "stl")
    assert figures.get("psnr", 99.0) > 30.0 and figures.get("psnr_object", 99.0) > 25.0


def test_a_wrong_shape_and_a_wrong_colour_show(
    sided: Mesh, cameras: Camera, tmp_path: Path
) -> None:
    rgb, opacity = render_mesh(sided, cameras, 48, 48)
    write_glb(asset_of(replace(sided, vertices=0.5 * sided.vertices)), tmp_path / "small.glb")
    assert verify_export(tmp_path / "small.glb", cameras, rgb, opacity)["iou"] < 0.4
    write_glb(asset_of(replace(sided, texture=255 - sided.texture)), tmp_path / "negative.glb")
    figures = verify_export(tmp_path / "negative.glb", cameras, rgb, opacity[:, 0])
    assert figures["iou"] > 0.995 and figures["psnr_object"] < 6.0
