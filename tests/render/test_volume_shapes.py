"""The shapes of a render of no rays, which a view outside of everything may ask for."""

from __future__ import annotations

import pytest
import torch

from vp3d.config.schema import FieldConfig, RenderConfig
from vp3d.fields.nerf import build_field
from vp3d.render.volume import render_rays
from vp3d.types import Rays


@pytest.mark.parametrize("kind", ["grid", "hashgrid"])
def test_no_rays_have_the_shapes_of_many(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    field = build_field(FieldConfig(kind=kind, resolution=8, levels=1, log2_table=6), generator)
    none = Rays(torch.zeros(0, 3), torch.zeros(0, 3))
    render = render_rays(field, none, RenderConfig(samples=4), want_normal=True)
    found = [render.rgb, render.opacity, render.depth, render.normal]
    assert [tuple(value.shape) for value in found] == [(0, 3), (0,), (0,), (0, 3)]
    assert render_rays(field, none, RenderConfig(samples=4)).normal is None
