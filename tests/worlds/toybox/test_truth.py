"""The exact comparison: a scene that was turned, scaled and shifted comes back.

A wrong one does not fit.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vp3d.export.read import join
from vp3d.metrics.shapes import moved
from vp3d.types import Mesh
from vp3d.worlds.toybox.images import scene_distance
from vp3d.worlds.toybox.janus import (
    FRONT_BACK_LIMIT,
    azimuth_agreement,
    janus_figures,
    janus_score,
)
from vp3d.worlds.toybox.scenes import parse_caption
from vp3d.worlds.toybox.truth import (
    LIGHTS,
    Comparison,
    Truth,
    compare,
    lit,
    rotation,
    true_mesh,
    truth_of,
)

CAPTION = "a white mug with a red handle"
YAW, SCALE, SHIFT = 77.0, 0.7, np.array([0.1, -0.05, 0.08])


@pytest.fixture(scope="module")
def mug() -> Truth:
    return truth_of(parse_caption(CAPTION))


@pytest.fixture(scope="module")
def turned(mug: Truth) -> Comparison:
    """The true mug made turned: the light came after the turn."""
    found = compare(lit(moved(mug.mesh, SCALE * rotation(YAW), SHIFT)), mug)
    assert found is not None
    return found


def test_the_pose_that_was_given_is_found(turned: Comparison) -> None:
    told = turned.figures
    assert abs(told["yaw_deg"] + YAW) < 1.0 and abs(told["scale"] * SCALE - 1.0) < 0.01
    assert np.allclose(turned.pose.forward(SHIFT[None]), 0.0, atol=0.01)
    assert np.allclose(turned.pose.backward(turned.pose.forward(np.eye(3))), np.eye(3), atol=1e-9)


def test_the_true_shape_and_colour_are_seen_as_such(turned: Comparison) -> None:
    told = turned.figures
    assert (
        told["iou"] > 0.97
        and told["chamfer"] < 0.005
        and told["fscore"] > 0.99
        and told["color_error"] < 0.5
    )


def test_a_light_that_was_turned_along_is_an_error_unless_it_may_be(mug: Truth) -> None:
    along = moved(lit(mug.mesh), rotation(90.0), np.zeros(3))
    strict, free = compare(along, mug), compare(along, mug, LIGHTS)
    assert strict is not None and free is not None
    assert (
        free.light == "true"
        and free.figures["color_error"] < 0.5 < 2.0 < strict.figures["color_error"]
    )


def test_another_noun_fits_less_and_another_colour_shows(mug: Truth, turned: Comparison) -> None:
    lamp = compare(lit(true_mesh(parse_caption("a white lamp"), cells=48)), mug)
    blue = compare(lit(true_mesh(parse_caption("a blue mug with a red handle"), cells=48)), mug)
    assert lamp is not None and blue is not None
    assert lamp.figures["iou"] < 0.7 < turned.figures["iou"] and lamp.figures["fscore"] < 0.8
    assert blue.figures["iou"] > 0.97 and blue.figures["color_error"] > 30.0


def test_a_mesh_without_volume_or_without_colours(mug: Truth) -> None:
    flat = Mesh(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32), np.array([[0, 1, 2]]))
    assert compare(flat, mug) is None
    bare = compare(replace(mug.mesh, vertex_colors=None, normals=None), mug)
    assert bare is not None and bare.figures["color_error"] is None and bare.figures["iou"] > 0.97


def test_true_mesh_lies_on_the_scene_and_faces_outwards(mug: Truth) -> None:
    distance, _ = scene_distance(mug.scene.prims, mug.mesh.vertices.astype(np.float64))
    assert np.quantile(np.abs(distance), 0.99) < 2e-3
    assert mug.mesh.normals is not None
    out, _ = scene_distance(mug.scene.prims, (mug.points + 0.02 * mug.normals))
    assert (out > 0).mean() > 0.95


def two_faced(mesh: Mesh) -> Mesh:
    """The front half of `mesh`, and the same again behind."""
    front = replace(mesh, faces=mesh.faces[mesh.vertices[mesh.faces][:, :, 0].mean(1) > 0])
    return join([front, moved(front, rotation(180.0), np.zeros(3))])


def test_a_second_front_is_a_janus(mug: Truth, turned: Comparison) -> None:
    double = compare(lit(two_faced(mug.mesh)), mug)
    assert double is not None
    assert (
        janus_figures(double, mug)["janus"] > 0.5 and janus_figures(double, mug)["two_faced"] == 1.0
    )
    whole = janus_figures(turned, mug)
    assert whole["janus"] < 0.1 and whole["two_faced"] == 0.0
    assert whole["view_agreement"] == 0.0  # no second face, but turned from its view words


def test_a_shapeless_asset_has_no_second_face(mug: Truth) -> None:
    blob = compare(lit(true_mesh(parse_caption("a white egg"), cells=32)), mug)
    assert blob is not None
    found = janus_figures(blob, mug)
    assert abs(found["janus"] - found["front_error"]) < 0.1 and found["two_faced"] == 0.0


def test_scores_of_views_by_hand() -> None:
    azimuth = np.arange(24) * 15.0
    apart = np.abs((azimuth[:, None] - azimuth[None] + 180.0) % 360.0 - 180.0)
    truth = 1.0 - apart / 180.0  # likeness falls with the angle
    assert janus_score(truth, truth) == pytest.approx(0.0)
    front_everywhere = np.repeat(truth[:1], 24, 0)
    assert janus_score(front_everywhere, truth) == pytest.approx(1.0)
    assert janus_score(np.full((24, 24), 0.3), truth) == pytest.approx(0.5)
    assert janus_score(truth, np.full((24, 24), 1.0 - 0.9 * FRONT_BACK_LIMIT)) is None
    assert (
        azimuth_agreement(truth, truth, 0.0) == 1.0 and azimuth_agreement(truth, truth, 90.0) == 0.0
    )
    assert (
        azimuth_agreement(truth, truth, 30.0) == 1.0
        and azimuth_agreement(truth, np.ones((24, 24)), 90.0) == 1.0
    )
    assert azimuth_agreement(front_everywhere, truth, 0.0) == pytest.approx(
        5 / 24
    )  # 0, 15, 30, 330 and 345 degrees
