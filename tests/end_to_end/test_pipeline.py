"""What the pipeline's parts agree on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.listening import journal_of
from vp3d.build import finish_settings
from vp3d.config.schema import Config
from vp3d.fields.base import lattice
from vp3d.fields.grid import GridField
from vp3d.fields.nerf import Field
from vp3d.finish import export_field
from vp3d.runs.folder import RunFolder


def ball_under_a_roof(resolution: int = 32) -> Field:
    """A dense ball of radius 0.4, and matter on the top face of the cube."""
    config = Config()
    config.field.resolution = resolution
    field = GridField(config.field, torch.Generator().manual_seed(0))
    x = lattice(resolution)
    inside = torch.maximum(0.4 - x.norm(dim=-1), x[:, 2] - 0.95)
    with torch.no_grad():
        field.raw_density.copy_(
            (400.0 * inside).clamp(-15.0, 60.0).reshape(field.raw_density.shape)
        )
    return field


@pytest.mark.parametrize(("bound_radius", "top"), [(0.9, 0.4), (2.0, 1.0)])
def test_matter_that_was_never_rendered_is_not_exported(
    tmp_path: Path, bound_radius: float, top: float
) -> None:
    config = Config(prompt="a red sphere", output_dir=str(tmp_path))
    config.render.bound_radius = bound_radius
    config.export.grid, config.export.faces, config.export.texture_size, config.export.formats = (
        48,
        1000,
        32,
        ["glb"],
    )
    asset = export_field(
        ball_under_a_roof(),
        finish_settings(config),
        journal_of(RunFolder.create(config)),
        torch.device("cpu"),
    )
    assert asset.mesh.vertices[:, 2].max() == pytest.approx(top, abs=0.05)
    assert asset.figures["glb_iou"] > 0.9  # against renders that know of the bound too
