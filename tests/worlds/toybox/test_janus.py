"""The Janus score by hand: likeness of views, the windows around front and back, and the pictures
of a ball, whose outline and depth are known.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import trimesh
from skimage.color import rgb2lab

from vp3d.types import Mesh
from vp3d.worlds.toybox import janus
from vp3d.worlds.toybox.janus import (
    CLEAR_MARGIN,
    ViewFeatures,
    angle_between,
    azimuth_agreement,
    janus_figures,
    janus_score,
    similarity,
    view_features,
)
from vp3d.worlds.toybox.truth import lit

BACK = range(9, 16)  # of 24 views 15 degrees apart: 135 to 225 degrees
UNTURNED = SimpleNamespace(pose=SimpleNamespace(yaw_deg=0.0), light="none", mesh=None)
RADIUS, RED, BLUE = 0.6, (0.8, 0.3, 0.2), (0.2, 0.3, 0.7)


def features(hit: list[int], lab: list[float], depth: list[float]) -> ViewFeatures:
    """One view whose pixels differ in lightness alone."""
    lightness = np.array(lab, float)[None, :, None] * np.array([1.0, 0.0, 0.0])
    return ViewFeatures(np.array([hit], bool), lightness, np.array([depth], float))


def test_similarity_weighs_common_pixels_by_colour_and_depth() -> None:
    a = features([1, 1, 1, 0, 0], [0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.2, 0.0, 0.0])
    b = features([1, 1, 1, 1, 0], [0.0, 25.0, 10.0, 0.0, 0.0], [0.0, 0.0, 0.1, 0.0, 0.0])
    # 1, half a colour limit, 0.8 of the colour times 0.75 of the depth, of four pixels
    assert similarity(a, b) == pytest.approx(np.array([[(1.0 + 0.5 + 0.8 * 0.75) / 4.0]]))


def test_what_differs_by_more_than_a_limit_counts_nothing_and_not_less() -> None:
    a = features([1, 1, 1], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    b = features([1, 1, 1], [60.0, 0.0, 0.0], [0.0, 0.0, 0.5])
    assert similarity(a, b) == pytest.approx(np.array([[1.0 / 3.0]]))
    one = features([1], [0.0], [0.0])
    assert similarity(one, one) == pytest.approx(np.array([[1.0]]))
    none = features([0], [0.0], [0.0])
    assert similarity(none, none) == pytest.approx(np.array([[0.0]]))


@pytest.mark.parametrize(
    ("a", "b", "expected"), [(350, 10, 20), (0, 180, 180), (-170, 170, 20), (90, 0, 90), (5, 5, 0)]
)
def test_angle_between_azimuths(a: float, b: float, expected: float) -> None:
    assert angle_between(np.array([a]), np.array([b])).tolist() == [expected]


def views_of(rows: range, shift: int, value: float) -> np.ndarray:
    """Similarity [24, 24], 0 but for those rows at their own azimuth plus `shift` views."""
    found = np.zeros((24, 24))
    for row in rows:
        found[row, (row + shift) % 24] = value
    return found


@pytest.mark.parametrize(
    ("column", "expected"), [(0, 1.0), (3, 1.0), (21, 1.0), (4, 0.5), (20, 0.5)]
)
def test_front_is_45_degrees_wide_to_each_side(column: int, expected: float) -> None:
    to_truth = np.zeros((24, 24))
    to_truth[BACK, column] = 1.0
    assert janus_score(to_truth, np.eye(24)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shift", "expected"), [(0, 0.2), (3, 0.2), (-3, 0.2), (4, 0.5), (-4, 0.5)]
)
def test_own_azimuth_is_45_degrees_wide_to_each_side(shift: int, expected: float) -> None:
    assert janus_score(views_of(BACK, shift, 0.6), np.eye(24)) == pytest.approx(expected)


@pytest.mark.parametrize(("row", "share"), [(8, 0.0), (9, 1 / 7), (15, 1 / 7), (16, 0.0)])
def test_back_is_45_degrees_wide_to_each_side(row: int, share: float) -> None:
    to_truth = np.zeros((24, 24))
    to_truth[row, 0] = 1.0
    assert janus_score(to_truth, np.eye(24)) == pytest.approx(0.5 + share / 2.0)


def test_a_score_is_relative_to_how_the_true_front_and_back_differ() -> None:
    to_truth, alike = np.zeros((24, 24)), np.eye(24)
    to_truth[BACK, 0], alike[BACK, 0] = 0.2, 0.6
    assert janus_score(to_truth, alike) == pytest.approx(0.5 + 0.2 / (2 * 0.4))
    assert janus_score(5.0 * to_truth, alike) == 1.0 and janus_score(-5.0 * to_truth, alike) == 0.5
    assert janus_score(views_of(BACK, 0, 1.0), alike) == 0.0
    alike[BACK, 0] = 0.919
    assert janus_score(to_truth, alike) == 1.0
    alike[BACK, 0] = 0.921
    assert janus_score(to_truth, alike) is None


@pytest.mark.parametrize(
    ("yaw", "shift", "expected"),
    [
        (0.0, 2, 1.0),
        (0.0, -2, 1.0),
        (0.0, 3, 0.0),
        (30.0, -2, 1.0),
        (30.0, -4, 1.0),
        (30.0, 0, 1.0),
        (30.0, 1, 0.0),
        (30.0, -5, 0.0),
    ],
)
def test_views_agree_within_30_degrees_of_their_own(
    yaw: float, shift: int, expected: float
) -> None:
    found = azimuth_agreement(views_of(range(24), shift, 1.0), np.zeros((24, 24)), yaw)
    assert found == expected


@pytest.mark.parametrize(
    ("likeness", "yaw", "own", "expected"),
    [(0.97, 8.0, -1, 1.0), (0.96, 8.0, -1, 0.0), (1.0, 8.0, 0, 0.0), (1.0, 7.0, 0, 1.0)],
)
def test_a_view_agrees_too_if_the_true_one_looks_the_same(
    likeness: float, yaw: float, own: int, expected: float
) -> None:
    """The most similar view is that of the other side; the nearest true one is `own` views on."""
    other_side = views_of(range(24), 12, 1.0)
    same = np.roll(views_of(range(24), 12, likeness), own, 1)
    assert azimuth_agreement(other_side, same, yaw) == expected


def ball() -> Mesh:
    """Red in front (+x), blue behind."""
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=RADIUS)
    points = np.asarray(sphere.vertices, np.float32)
    colors = np.where(points[:, :1] > 0.0, np.float32(RED), np.float32(BLUE)).astype(np.float32)
    return Mesh(points, np.asarray(sphere.faces, np.int64), points / RADIUS, colors)


def ball_by_hand(view: int) -> tuple[np.ndarray, np.ndarray]:
    """Where 48 x 48 rays of a camera 2.9 away, 15 degrees up, hit the ball, and how far in front
    of the origin.
    """
    a, e = np.deg2rad(15.0 * view), np.deg2rad(15.0)
    out = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    right = np.array([-np.sin(a), np.cos(a), 0.0])
    up = np.cross(out, right)
    y, x = np.mgrid[:48, :48] + 0.5 - 24.0
    step = np.tan(np.deg2rad(20.0)) / 24.0
    rays = -out + step * (x[..., None] * right - y[..., None] * up)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    half = rays @ (2.9 * out)
    root = half**2 - (2.9**2 - RADIUS**2)
    points = 2.9 * out + (-half - np.sqrt(np.maximum(root, 0.0)))[..., None] * rays
    return (root > 0.0).ravel(), ((points @ out) * (root > 0.0)).ravel()


@pytest.mark.parametrize("view", [0, 5, 23])
def test_pictures_of_a_ball_have_its_outline_and_depth(view: int) -> None:
    found = view_features(ball(), None)
    assert found.hit.shape == (24, 48 * 48) and found.lab.shape == (24, 48 * 48, 3)
    hit, depth = ball_by_hand(view)
    assert (found.hit[view] != hit).mean() < 0.01 < 0.2 < hit.mean()
    inside = hit & found.hit[view] & (depth > 0.3)
    assert np.abs(found.depth[view] - depth)[inside].max() < 0.02
    assert (found.depth[view][~found.hit[view]] == 0.0).all()
    assert (found.lab[view][~found.hit[view]] == 0.0).all()


def test_colours_of_a_ball_are_those_of_the_side_that_is_shown_without_its_light() -> None:
    middle = 24 * 48 + 24
    plain = view_features(ball(), None)
    assert plain.lab[0, middle] == pytest.approx(rgb2lab(RED), abs=0.1)
    assert plain.lab[12, middle] == pytest.approx(rgb2lab(BLUE), abs=0.1)
    for yaw in (0.0, 70.0):
        without = view_features(lit(ball(), yaw), yaw)
        assert np.abs(without.lab - plain.lab).max() < 1.0
    assert np.abs(view_features(lit(ball(), 70.0), 0.0).lab - plain.lab).max() > 3.0


@pytest.mark.parametrize(("light", "expected"), [("made", 33.0), ("true", 0.0), ("none", None)])
def test_figures_remove_the_light_that_was_found(
    light: str, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lights: list[object] = []
    monkeypatch.setattr(janus, "view_features", lambda mesh, yaw: lights.append((mesh, yaw)))
    monkeypatch.setattr(janus, "similarity", lambda *_: np.eye(24))
    found = SimpleNamespace(pose=SimpleNamespace(yaw_deg=33.0), light=light, mesh="own")
    janus_figures(found, SimpleNamespace(mesh="true"))
    assert lights == [("own", expected), ("true", None)]


def test_front_error_is_the_score_with_front_and_back_exchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    to_truth = np.zeros((24, 24))
    to_truth[[21, 22, 23, 0, 1, 2, 3], 12] = 1.0  # the front shows the back
    answers = iter([to_truth, np.eye(24)])
    monkeypatch.setattr(janus, "view_features", lambda *_: None)
    monkeypatch.setattr(janus, "similarity", lambda *_: next(answers))
    figures = janus_figures(UNTURNED, SimpleNamespace(mesh=None))
    assert (figures["janus"], figures["front_error"], figures["two_faced"]) == (0.5, 1.0, 0.0)


@pytest.mark.parametrize(
    ("back", "front", "expected"),
    [
        (0.55, 0.50, 0.0),  # more than half, but not clearly more than the front's own error
        (0.60, 0.49, 1.0),
        (0.60, 0.50, 0.0),  # 0.1 is not more than 0.1
        (0.60, 0.51, 0.0),
        (0.50, 0.10, 0.0),  # equally similar to both is not two-faced
        (0.49, 0.00, 0.0),
        (0.51, 0.00, 1.0),
        (0.95, 0.90, 0.0),  # shapeless
        (None, 0.0, None),
        (0.9, None, None),
    ],
)
def test_two_faces_are_clear_or_none(
    back: float | None,
    front: float | None,
    expected: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = iter([back, front])
    monkeypatch.setattr(janus, "view_features", lambda *_: None)
    monkeypatch.setattr(janus, "similarity", lambda *_: np.eye(janus.COUNT))
    monkeypatch.setattr(janus, "janus_score", lambda *_: next(scores))
    found = janus_figures(UNTURNED, SimpleNamespace(mesh=None))
    assert (found["janus"], found["front_error"], found["two_faced"]) == (back, front, expected)
    assert CLEAR_MARGIN == 0.1
