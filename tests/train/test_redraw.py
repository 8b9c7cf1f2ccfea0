"""What a fit may use of pictures that do not agree with each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vp3d.render.camera import orbit, project, ring
from vp3d.train.redraw import (
    FARTHEST,
    GAIN_LIMIT,
    OWN_WEIGHT,
    Front,
    Targets,
    aligned,
    evened,
    explained,
    fitted,
    iou,
    shifted,
    usable_targets,
)
from vp3d.types import Camera

GREY = 0.5


def discs(x: Tensor, y: Tensor, radius: float = 14.0, side: int = 64) -> Tensor:
    """Soft discs around pixels (x, y) [B]: masks [B, 1, side, side]."""
    axis = torch.arange(side) + 0.5
    distance = (
        (axis[None, :, None] - y[:, None, None]) ** 2 + (axis[None, None] - x[:, None, None]) ** 2
    ).sqrt()
    return (radius + 0.5 - distance).clamp(0.0, 1.0)[:, None]


def pictures_of(masks: Tensor, color: tuple[float, ...] = (0.8, 0.2, 0.1)) -> Tensor:
    paint = torch.tensor(color)[None, :, None, None]
    return paint * masks + GREY * (1.0 - masks)


def middle(count: int) -> Tensor:
    return torch.full((count,), 32.0)


def targets(masks: Tensor) -> Targets:
    return Targets(pictures_of(masks), masks, torch.ones(len(masks)))


def test_a_movement_of_the_object_is_explained_and_nothing_else() -> None:
    camera = orbit([0.0, 90.0, 200.0, 300.0], [0.0, 30.0, 0.0, 30.0], 2.9, 40.0)
    movement = torch.tensor([[0.02, -0.03, 0.01]])
    here, there = (project(camera, p, 64, 64)[0][:, 0] for p in (torch.zeros(1, 3), movement))
    shift = (there - here).double()
    found = explained(shift, camera, 64, torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(found, shift, atol=0.03, rtol=0.0)
    odd = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]).double()
    left = odd - explained(odd, ring(4, 0.0, 2.9, 40.0), 64, torch.ones(4, dtype=torch.bool))
    assert float(left.norm()) > 1.9, "the four sides disagree"


def test_disagreeing_pictures_are_moved_back() -> None:
    camera = ring(8, 0.0, 2.9, 40.0)
    x = 32.0 + torch.tensor([1.0, -1.0] * 4)
    masks, own = discs(x, middle(8)), discs(middle(8), middle(8))
    kept = torch.ones(8, dtype=torch.bool)
    pictures, moved, near = aligned(pictures_of(masks), masks, own, camera, GREY, kept)
    assert bool(near.all())
    assert float((moved - own).abs().mean()) < 0.3 * float((masks - own).abs().mean())
    assert float((pictures - pictures_of(own)).abs().max()) < 0.3


def test_an_error_of_the_mesh_stays() -> None:
    camera = ring(8, 0.0, 2.9, 40.0)
    centre = project(camera, torch.tensor([[0.05, 0.0, 0.05]]), 64, 64)[0][:, 0]
    masks, own = discs(centre[:, 0], centre[:, 1]), discs(middle(8), middle(8))
    kept = torch.ones(8, dtype=torch.bool)
    _, moved, _ = aligned(pictures_of(masks), masks, own, camera, GREY, kept)
    assert torch.equal(moved, masks), "all pictures agree that the object is elsewhere"


def test_a_picture_that_would_be_moved_far_is_not_used() -> None:
    camera = ring(12, 0.0, 2.9, 40.0)
    x = 32.0 + torch.tensor([0.6, -0.6] * 6)
    x[0] = 32.0 + 1.6 * FARTHEST * 64
    masks, own = discs(x, middle(12)), discs(middle(12), middle(12))
    kept = torch.ones(12, dtype=torch.bool)
    near = aligned(pictures_of(masks), masks, own, camera, GREY, kept)[2]
    assert near.tolist() == [False] + [True] * 11


def test_brightness_is_evened_but_its_mean_stays() -> None:
    masks = discs(middle(4), middle(4))
    own = targets(masks)
    gains = torch.tensor([1.03, 0.97, 1.03, 0.97])[:, None, None, None]
    object_ = own.rgb - GREY * (1.0 - masks)
    kept = torch.ones(4, dtype=torch.bool)
    found = evened(object_ * gains + GREY * (1.0 - masks), masks, own, GREY, kept)
    torch.testing.assert_close(found, own.rgb, atol=2e-3, rtol=0.0)
    darker = object_ * 0.8 + GREY * (1.0 - masks)
    torch.testing.assert_close(evened(darker, masks, own, GREY, kept), darker, atol=1e-4, rtol=0)
    far = object_ * torch.tensor([1.3, 0.7, 1.0, 1.0])[:, None, None, None]
    found = evened(far + GREY * (1.0 - masks), masks, own, GREY, kept)
    ratio = (found - GREY * (1.0 - masks))[0, 0, 32, 32] / far[0, 0, 32, 32]
    assert float(ratio) == pytest.approx(1.0 - GAIN_LIMIT, abs=1e-3)


def test_another_object_is_dropped_and_the_view_keeps_its_render() -> None:
    own = targets(discs(middle(4), middle(4)))
    masks = discs(middle(4), middle(4), 14.0)
    masks[1] = discs(middle(1), middle(1), 5.0)[0]
    pictures = pictures_of(masks, (0.1, 0.2, 0.9))
    pictures[2] = GREY  # nothing at all
    found = usable_targets(pictures, own, ring(4, 0.0, 2.9, 40.0), GREY, 0.12)
    assert (found.weight <= OWN_WEIGHT + 1e-6).tolist() == [False, True, True, False]
    assert torch.equal(found.rgb[1], own.rgb[1]) and torch.equal(found.mask[2], own.mask[2])
    assert float(found.rgb[0, 2, 32, 32]) == pytest.approx(0.9, abs=0.01)


def test_the_visual_prompt_becomes_the_front_view() -> None:
    camera: Camera = orbit([0.0, 90.0, 0.0], [0.0, 0.0, 30.0], 2.9, 40.0)
    own = targets(discs(middle(3), middle(3)))
    mask = discs(torch.tensor([40.0]), torch.tensor([24.0]), 20.0)
    front = Front(pictures_of(mask, (0.2, 0.9, 0.2)), mask)
    found = usable_targets(own.rgb, own, camera, GREY, 0.12, front)
    green = found.rgb[:, 1, 32, 32]
    assert float(green[0]) == pytest.approx(0.9, abs=0.02), "moved and scaled onto the front view"
    assert float(green[1]) == pytest.approx(0.2, abs=0.02)
    assert float(iou(found.mask[:1], own.mask[:1])) > 0.9
    square = torch.zeros(1, 1, 64, 64)
    square[..., 10:50, 30:34] = 1.0
    other = usable_targets(own.rgb, own, camera, GREY, 0.12, Front(pictures_of(square), square))
    assert torch.allclose(other.rgb[0, :, 32, 32], own.rgb[0, :, 32, 32], atol=0.02)


def test_a_visual_prompt_without_an_object_is_not_used() -> None:
    nothing = torch.zeros(1, 1, 16, 16)
    assert fitted(Front(torch.ones(1, 3, 16, 16), nothing), discs(middle(1), middle(1))) is None


def test_shifts_by_hand() -> None:
    picture = torch.zeros(1, 1, 8, 8)
    picture[0, 0, 3, 5] = 1.0
    moved = shifted(picture, torch.tensor([[2.0, -1.0]]))
    assert float(moved[0, 0, 4, 3]) == pytest.approx(1.0, abs=1e-5)


def test_overlap_by_hand() -> None:
    a, b = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    a[0, 0, 0], b[0, 0, :, 0] = 1.0, 1.0
    assert iou(a, b).tolist() == [pytest.approx(1.0 / 3.0), 1.0]
