"""The claim on the teacher: figures of pictures whose quality is known, and what they decide."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vp3d.evaluate.claims import teacher
from vp3d.evaluate.claims.teacher import ARMS, FIGURES, MESH, Views
from vp3d.render.camera import ring
from vp3d.types import Camera
from vp3d.worlds.toybox.blurred import exact_pictures
from vp3d.worlds.toybox.scenes import parse_caption
from vp3d.worlds.toybox.truth import Truth, truth_of

SPEC = parse_caption("a red cone")
GREY, SIZE = 0.5, 64


@pytest.fixture(scope="module")
def truth() -> Truth:
    return truth_of(SPEC)


def camera() -> Camera:
    return ring(6, 15.0, 2.9, 40.0)


def true_views(truth: Truth, yaw: float = 0.0, scale: float = 1.0) -> Views:
    return teacher.true_views(truth, yaw, scale, np.zeros(3), camera(), SIZE, GREY)


def test_the_true_views_are_those_of_the_exact_renderer(truth: Truth) -> None:
    views = true_views(truth)
    exact = exact_pictures(SPEC, camera(), SIZE, GREY)
    inside = (views.mask > 0.99).expand_as(exact)
    assert float((views.rgb - exact).abs()[inside].mean()) < 0.01
    assert float((views.rgb - exact).abs().mean()) < 0.01


def test_the_true_object_is_put_where_the_mesh_is(truth: Truth) -> None:
    plain = true_views(truth).mask.mean()
    half = true_views(truth, scale=2.0).mask.mean()
    assert float(half) == pytest.approx(float(plain) / 4.0, rel=0.1), "the mesh is half as large"


def test_perfect_pictures_have_perfect_figures(truth: Truth) -> None:
    true = true_views(truth)
    own = Views(torch.full_like(true.rgb, GREY), torch.zeros_like(true.mask))
    found = teacher.view_figures(true, own, true, camera())
    assert found["iou"] == 1.0 and found["psnr"] > 90.0 and found["color"] == 0.0
    assert found["direction"] == pytest.approx(1.0) and found["shift"] == pytest.approx(0.0)
    assert found.keys() == FIGURES.keys()


def test_worse_pictures_have_worse_figures(truth: Truth) -> None:
    true = true_views(truth)
    shift = torch.tensor([2, -2] * 3)
    pairs = [
        tuple(torch.roll(layer[b], int(shift[b]), -1) for layer in (true.rgb, true.mask))
        for b in range(6)
    ]
    moved = Views(*(torch.stack(parts) for parts in zip(*pairs, strict=True)))
    away = Views(true.rgb.clone(), true.mask)
    found = teacher.view_figures(moved, away, true, camera())
    assert found["iou"] < 0.95 and found["psnr"] < 30.0 and found["shift"] > 1.0
    pale = Views(0.5 * true.rgb + 0.5 * GREY, true.mask)
    assert teacher.view_figures(pale, true, true, camera())["color"] > 5.0


def records(gains: list[float]) -> list[dict[str, dict[str, float]]]:
    mesh = {"iou": 0.85, "psnr": 18.0, "direction": 0.0, "color": 3.0, "shift": 0.2}
    found = []
    for gain in gains:
        arms = {arm.name: {**mesh, "iou": 0.85 + gain, "psnr": 17.0} for arm in ARMS[:2]}
        found.append({MESH: mesh, **arms})
    return found


def test_geometry_may_change_where_silhouettes_gain() -> None:
    finding = teacher.finding(records([0.02, 0.03, 0.025, 0.02]))
    assert [verdict.holds for verdict in finding.verdicts] == [True, False, None]
    assert finding.verdicts[2].measured == "geometry"
    assert [row[0] for row in finding.tables[0].rows][0] == MESH


def test_nothing_may_change_where_the_gain_may_be_chance() -> None:
    finding = teacher.finding(records([0.02, -0.03, 0.025, -0.01]))
    assert [verdict.holds for verdict in finding.verdicts] == [False, False, None]
    assert finding.verdicts[2].measured == "nothing"
    assert teacher.finding(records([0.1])).verdicts[0].holds is False, "one prompt proves nothing"
