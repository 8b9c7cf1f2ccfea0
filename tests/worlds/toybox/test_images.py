"""The ground-truth renderer against geometry worked out by hand."""

from __future__ import annotations

import numpy as np
import torch

from vp3d.render.camera import camera_rays, orbit
from vp3d.render.shade import AMBIENT, DIFFUSE, LIGHT_DIRECTION
from vp3d.worlds.toybox.images import render_scenes, render_spec, view_vectors
from vp3d.worlds.toybox.scenes import BALL_RADIUS, COLORS, Spec, build_scene, parse_caption


def one(text: str, azimuth: float, elevation: float = 15.0) -> np.ndarray:
    return render_spec(parse_caption(text), [azimuth], elevation)[0].astype(int)


def test_sphere_silhouette_and_shade_against_ray_sphere_intersection() -> None:
    """Naive second version: solve the quadratic for each ray of `render.camera`, shade by its
    normal.
    """
    size, ss = 64, 2
    camera = orbit(30.0, 15.0, 2.9, 40.0)
    rays = camera_rays(camera, size * ss, size * ss)
    origin, direction = rays.origins.double().numpy(), rays.directions.double().numpy()
    b = (origin * direction).sum(1)
    root = b * b - (origin**2).sum(1) + BALL_RADIUS**2
    hit = root > 0
    point = origin + (-b - np.sqrt(np.maximum(root, 0)))[:, None] * direction
    light = AMBIENT + DIFFUSE * 0.5 * (1 + (point / BALL_RADIUS) @ np.array(LIGHT_DIRECTION))
    rgb = np.where(hit[:, None], np.array(COLORS["red"]) * light[:, None], 0.7)
    expected = rgb.reshape(size, ss, size, ss, 3).mean((1, 3)) * 255
    assert np.abs(one("a red sphere", 30.0) - expected).max() < 3.0


def test_view_vectors_agree_with_the_cameras_of_the_renderer() -> None:
    from vp3d.render.camera import camera_frame, camera_position

    camera = orbit([0.0, 77.0, -140.0], [10.0, -5.0, 40.0], 2.9, 40.0)
    ours = view_vectors(
        np.array([0.0, 77.0, -140.0]),
        np.array([10.0, -5.0, 40.0]),
        np.full(3, 2.9),
        np.full(3, 40.0),
    )
    right, up, forward = camera_frame(camera)
    theirs = torch.cat([camera_position(camera), right, up, forward], 1).numpy()
    np.testing.assert_allclose(ours[:, :12], theirs, atol=1e-5)


def test_sides_are_where_the_conventions_say() -> None:
    nose = np.array(COLORS["orange"]) * 255
    front, back = one("a white snowman", 0.0), one("a white snowman", 180.0)

    def near_orange(image: np.ndarray) -> int:
        return int((np.abs(image - nose * 0.8).max(-1) < 40).sum())

    assert near_orange(front) > 3 and near_orange(back) == 0
    mug = one("a white mug with a red handle", 0.0)
    red = (mug[..., 0] - mug[..., 1]) > 60
    assert np.argwhere(red)[:, 1].mean() > 40  # the handle is at +y: on the right from the front


def test_seen_counts_the_covered_share() -> None:
    spec = Spec("sphere", "red", relation="on", noun_b="cube", color_b="blue")
    views = view_vectors(np.zeros(1), np.full(1, 15.0), np.full(1, 2.9), np.full(1, 40.0))
    image, seen = render_scenes([build_scene(spec)], np.zeros(1), views, np.full(1, 0.7))
    ground = np.abs(image[0].astype(int) - round(0.7 * 255)).max(-1) <= 1
    assert abs((1 - ground.mean()) - seen.sum()) < 0.03
    assert seen[0, 0] > 0.02 and seen[0, 3] > 0.02 and seen[0, 1] == 0


def test_patterns_show_both_colours() -> None:
    for pattern in ("stripes", "checks"):
        image = one(f"a black cube with white {pattern}", 20.0)
        grey = image.mean(-1)
        assert (grey < 40).mean() > 0.05 and (grey > 140).mean() > 0.05


def test_the_same_caption_gives_the_same_bytes() -> None:
    first, second = (
        one("a green cactus with an orange pot", 33.0),
        one("a green cactus with an orange pot", 33.0),
    )
    assert (first == second).all()
