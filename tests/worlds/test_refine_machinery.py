"""The refine stage with a teacher that is exactly right, and with teachers that are wrong.

These are figures of the machinery alone: no network draws here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vp3d.config.paths import ASSETS, MANIFEST
from vp3d.evaluate.refine_exact import (
    GREY,
    NOISE,
    blurred_start,
    figures,
    refine_with,
    settings_of,
)
from vp3d.export.repair import is_watertight
from vp3d.prompts import view_prompts
from vp3d.render.raster_soft import SoftRender
from vp3d.rewards.encoders import load_clip
from vp3d.train.refine import Judge
from vp3d.train.surface_parameters import start_of
from vp3d.types import Camera, Mesh
from vp3d.worlds.toybox.blurred import ExactTeacher
from vp3d.worlds.toybox.scenes import parse_caption

CAPTION = "a red mushroom with a white stem"
SPEC = parse_caption(CAPTION)
SPOILED = (  # what spoiled teachers draw instead
    "a blue mushroom with a green stem",
    "a white mushroom with a red stem",
    "a purple sphere",
    "a green mug with a blue handle",
    "a yellow chair with red legs",
    "a black cone on a white cube",
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def blurred() -> Mesh:
    return blurred_start(SPEC)


def test_exact_noisy_pictures_of_64_pixels_repair_a_blurred_mesh(blurred: Mesh) -> None:
    before = figures(blurred, SPEC)
    mesh, guard = refine_with(blurred, settings_of(), ExactTeacher(SPEC, GREY, NOISE))
    after = figures(mesh, SPEC)
    assert before.iou < 0.95 and before.chamfer > 0.008 and before.psnr < 22.0
    assert after.iou >= 0.980, (before, after)
    assert after.chamfer <= 0.0035, (before, after)
    assert after.color <= 1.2 and after.color <= before.color, (before, after)
    assert after.psnr >= 30.0, (before, after)
    assert all(event["kept"] for event in guard)
    whole = start_of(mesh)
    assert is_watertight(Mesh(whole.vertices.numpy(), whole.faces.numpy()))


def test_a_large_texture_does_not_take_the_noise_of_the_pictures(blurred: Mesh) -> None:
    teacher = ExactTeacher(SPEC, GREY, NOISE)
    fast: dict[str, Any] = {"change": "texture", "strengths": [0.5], "lr_texture": 2.0e-2}
    start = figures(blurred, SPEC).color
    bare = refine_with(blurred, settings_of(**fast, variation=0.0), teacher)[0]
    mesh = refine_with(blurred, settings_of(**fast), teacher)[0]
    trap, color = figures(bare, SPEC).color, figures(mesh, SPEC).color
    assert trap > start + 1.0, "the loss falls, the colours do not"
    assert color < start + 0.3 < trap


def clip_judge() -> Judge:
    clip = load_clip(str(ASSETS / "clip"), str(MANIFEST))

    @torch.no_grad()
    def judge(drawn: SoftRender, camera: Camera) -> dict[str, float]:
        rgb = drawn.over(GREY).clamp(0.0, 1.0)
        text = clip.text(view_prompts(CAPTION, camera))
        return {"text_image": float((clip.image(rgb) * text).sum(-1).mean())}

    return judge


def test_six_spoiled_teachers_leave_the_mesh_unharmed(blurred: Mesh) -> None:
    judge, before = clip_judge(), figures(blurred, SPEC)
    # as far as the texture moves in a round of 150 steps with the default rate
    config = settings_of(azimuths=12, strengths=[0.5], steps=25, lr_texture=2.0e-2)
    for caption in SPOILED:
        teacher = ExactTeacher(parse_caption(caption), GREY, NOISE)
        mesh, guard = refine_with(blurred, config, teacher, judge)
        after = figures(mesh, SPEC)
        assert after.iou > before.iou - 0.002, (caption, guard, before, after)
        assert after.color < before.color + 0.3, (caption, guard, before, after)
        if "mushroom" in caption:  # its silhouettes agree: only the judge can tell
            assert not guard[-1]["kept"] and "text_image fell" in guard[-1]["reason"], guard
