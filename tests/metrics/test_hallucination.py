"""The feature distance by hand and on planted cases, with the embedded features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vp3d.align.hallucination import EPSILON, distance, grade, local_map, top_mean
from vp3d.metrics.hallucination_features import EmbeddedFeatures
from vp3d.metrics.hallucination_towers import embedded_features, grades
from vp3d.worlds.toybox.data import to_tensor
from vp3d.worlds.toybox.images import view_vectors
from vp3d.worlds.toybox.planted import plant
from vp3d.worlds.toybox.scenes import parse_caption, sample_spec

VIEW = view_vectors(*(np.array([value]) for value in (30.0, 15.0, 2.9, 40.0)))
CAPTION = "a red mushroom with a white stem"


@pytest.fixture(scope="module")
def features() -> EmbeddedFeatures:
    return embedded_features()


def found(kind: str, level: int, features: EmbeddedFeatures, caption: str = CAPTION) -> tuple:
    pair = plant(parse_caption(caption), VIEW, 128, np.random.default_rng(1), kind, level)
    assert pair is not None
    a, b = to_tensor(pair.picture[None]), to_tensor(pair.reference[None])
    with torch.no_grad():
        return distance(a, b, features), pair


def naive_map(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Position by position; outside of the picture the border is repeated."""
    height, width = x.shape[-2:]
    result = torch.zeros(len(x), height, width)
    for n in range(len(x)):
        for i in range(height):
            for j in range(width):
                one = []
                for a, b in ((x, y), (y, x)):
                    near = []
                    for di in (-1, 0, 1):
                        for dj in (-1, 0, 1):
                            k, m = min(max(i + di, 0), height - 1), min(max(j + dj, 0), width - 1)
                            near.append((a[n, :, i, j] - b[n, :, k, m]).square().sum())
                    one.append(torch.stack(near).min())
                result[n, i, j] = torch.stack(one).max()
    return result


def test_the_local_map_is_that_of_the_naive_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(2, 5, 6, 7, generator=generator), dim=1) for _ in range(2))
    torch.testing.assert_close(local_map(x, y), naive_map(x, y))


def test_a_shift_by_one_position_costs_nothing_inside() -> None:
    x = F.normalize(torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(1)), dim=1)
    shifted = torch.roll(x, 1, dims=3)
    assert local_map(x, shifted)[:, :, 1:-1].max() == 0.0
    assert local_map(x, torch.roll(x, 2, dims=3)).mean() > 0.01


def test_the_mean_of_the_largest_by_hand() -> None:
    values = torch.tensor([[1.0, 5.0, 2.0, 4.0], [0.0, 0.0, 3.0, 0.0]])
    assert top_mean(values, 0.5).tolist() == [4.5, 1.5]
    assert top_mean(values, 0.01).tolist() == [5.0, 3.0]


def test_the_grade_is_interpolated_and_ends_at_the_ends() -> None:
    table = [(-4.0, 1.0), (-2.0, 2.0), (0.0, 5.0)]
    found = grade(torch.tensor([-9.0, -4.0, -3.0, -2.0, -1.0, 0.0, 7.0]), table)
    assert found.tolist() == [1.0, 1.0, 1.5, 2.0, 3.5, 5.0, 5.0]
    proxy = torch.tensor([-3.0, -1.0], requires_grad=True)
    grade(proxy, table).sum().backward()
    assert proxy.grad is not None and proxy.grad.tolist() == [0.5, 1.5]


def test_equal_pictures_are_at_no_distance_and_have_a_finite_gradient(
    features: EmbeddedFeatures,
) -> None:
    rgb = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    one = distance(rgb, rgb.detach(), features)
    assert one.local.tolist() == [0.0, 0.0] and float(one.maps.detach().max()) == 0.0
    assert one.proxy.detach() == pytest.approx(2 * np.log(EPSILON), abs=0.01)
    assert grade(one.proxy.detach(), grades()).tolist() == [1.0, 1.0]
    one.proxy.sum().backward()
    assert rgb.grad is not None and rgb.grad.isfinite().all()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_the_deep_and_the_spread_distance_by_hand(features: EmbeddedFeatures) -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.rand(2, 3, 64, 64, generator=generator) for _ in range(2))
    with torch.no_grad():
        one, (shallow_a, x), (shallow_b, y) = (
            distance(a, b, features), features.maps(a), features.maps(b),
        )  # fmt: skip
    for n in range(2):
        flat = cosine(x[n].numpy().ravel(), y[n].numpy().ravel())
        pooled = cosine(x[n].numpy().mean((1, 2)), y[n].numpy().mean((1, 2)))
        assert one.deep[n] == pytest.approx(1.0 - (flat + pooled) / 2.0, abs=1e-5)
    last = naive_map(shallow_a[-1], shallow_b[-1])
    torch.testing.assert_close(one.spread, last.mean((1, 2)))
    by_hand = sum(
        weight * np.log(value.numpy() + EPSILON)
        for weight, value in ((0.5, one.local), (3, one.deep), (-2, one.spread), (0.5, one.whole))
    )
    assert one.proxy.numpy() == pytest.approx(by_hand, abs=1e-4)


def test_noise_everywhere_is_less_than_a_thing_that_moves_the_picture_as_little(
    features: EmbeddedFeatures,
) -> None:
    for scene in range(4):
        assert proxy_of("noise", 3, scene, features) < proxy_of("swapped", 1, scene, features)


def test_the_order_of_the_pictures_does_not_matter(features: EmbeddedFeatures) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(1, 3, 64, 64, generator=generator) for _ in range(2))
    there, back = distance(a, b, features), distance(b, a, features)
    torch.testing.assert_close(there.proxy, back.proxy)
    torch.testing.assert_close(there.maps, back.maps)
    with pytest.raises(ValueError, match="one shape"):
        distance(a, b[..., :32], features)


def proxy_of(kind: str, level: int, scene: int, features: EmbeddedFeatures) -> float:
    """The proxy of one change of a random scene; that of no change if it cannot be seen."""
    spec, rng = sample_spec(np.random.default_rng(scene)), np.random.default_rng(scene)
    pair = plant(spec, VIEW, 128, rng, kind, level)
    if pair is None:
        return 2.0 * float(np.log(EPSILON))
    a, b = to_tensor(pair.picture[None]), to_tensor(pair.reference[None])
    with torch.no_grad():
        return float(distance(a, b, features).proxy)


@pytest.mark.parametrize("kind", ["colour", "texture"])
def test_a_worse_change_has_a_worse_grade_on_average(kind: str, features: EmbeddedFeatures) -> None:
    means = [
        np.mean([proxy_of(kind, level, scene, features) for scene in range(24)])
        for level in (1, 2, 3)
    ]
    assert means[0] < means[1] < means[2]


def test_blur_is_less_than_another_colour_in_nine_of_ten_scenes(
    features: EmbeddedFeatures,
) -> None:
    less = 0
    for scene in range(30):
        blurred = max(proxy_of("blur", level, scene, features) for level in (1, 2, 3))
        less += blurred < proxy_of("colour", 3, scene, features)
    assert less >= 27


def test_the_map_shows_where(features: EmbeddedFeatures) -> None:
    one, pair = found("added", 3, features)
    heat = one.maps[0].numpy()
    peak = np.unravel_index(heat.argmax(), heat.shape)
    rows, columns = np.nonzero(pair.mask)
    assert rows.min() - 8 <= peak[0] <= rows.max() + 8
    assert columns.min() - 8 <= peak[1] <= columns.max() + 8
    assert heat[pair.mask].mean() > 5.0 * heat[~pair.mask].mean()
