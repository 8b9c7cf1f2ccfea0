"""Intervals that cover what they claim, by simulation; tests of differences by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from vp3d.evaluate.intervals import (
    LEAST_FOR_BOOTSTRAP,
    bounded_interval,
    holm,
    mean_interval,
    sign_flip_p,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Mean 0.3."""
    return 0.3 + torch.randn(shape, generator=generator, dtype=torch.float64)


def ties(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Paired differences of prompts: three in five are 0, the others normal; mean 0."""
    return torch.randn(shape, generator=generator, dtype=torch.float64) * (
        torch.rand(shape, generator=generator) >= 0.6
    )


def shares(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Shares of right views: skewed to 1, with mean 5 / 6."""
    return torch.rand(shape, generator=generator, dtype=torch.float64) ** 0.2


MEANS = {normal: 0.3, ties: 0.0, shares: 5.0 / 6.0}
TRIALS = {6: 1000, 18: 1000, 72: 400}


def coverage(draw, count: int, confidence: float) -> float:
    """The share of simulated intervals that contain the true mean."""
    samples, generator = draw((TRIALS[count], count), seeded(count)), seeded(1)
    ends = [mean_interval(row, generator, confidence, samples=500) for row in samples]
    return sum(low <= MEANS[draw] <= high for low, high in ends) / len(ends)


@pytest.mark.parametrize("count", TRIALS)
@pytest.mark.parametrize(("draw", "most"), [(normal, 0.98), (shares, 0.98), (ties, 1.0)])
def test_a_95_per_cent_interval_covers_the_mean_in_93_per_cent_or_more(
    draw, most: float, count: int
) -> None:
    assert 0.93 <= coverage(draw, count, 0.95) <= most


@pytest.mark.parametrize("count", TRIALS)
def test_another_confidence_covers_accordingly(count: int) -> None:
    assert 0.77 <= coverage(normal, count, 0.80) <= 0.85


def test_few_values_by_hand() -> None:
    low, high = mean_interval(torch.tensor([1.0, 2.0, 3.0]), seeded())
    half = 4.302653 / math.sqrt(3.0)  # Student's t with 2 degrees of freedom, 97.5 %
    assert (low, high) == pytest.approx((2.0 - half, 2.0 + half), rel=1e-5)
    low, high = mean_interval(torch.tensor([True, False]), seeded())
    assert (low, high) == pytest.approx((0.5 - 6.353102, 0.5 + 6.353102), rel=1e-5)


def test_many_values_agree_with_the_normal_interval_and_repeat() -> None:
    values = torch.randn(400, generator=seeded()) + 3.0
    low, high = mean_interval(values, seeded(1), samples=20_000)
    half = 1.9659 * float(values.double().std()) / 20.0
    assert low == pytest.approx(float(values.mean()) - half, abs=0.01)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.01)
    assert mean_interval(values, seeded(1)) == mean_interval(values, seeded(1))
    assert mean_interval(values, seeded(1)) != mean_interval(values, seeded(2))


def test_of_skewed_values_the_bootstrap_reaches_further_to_the_long_side() -> None:
    values = torch.rand(60, generator=seeded(), dtype=torch.float64).log().neg()
    low, high = mean_interval(values, seeded(1))
    mean = float(values.mean())
    assert high - mean > 1.1 * (mean - low) > 0.0


def test_the_bootstrap_starts_at_its_number_of_values() -> None:
    values = torch.rand(LEAST_FOR_BOOTSTRAP, generator=seeded(), dtype=torch.float64) ** 4
    low, high = mean_interval(values, seeded())
    mean = float(values.mean())
    assert abs((high - mean) - (mean - low)) > 1e-3, "not symmetric"
    low, high = mean_interval(values[1:], seeded())
    mean = float(values[1:].mean())
    assert high - mean == pytest.approx(mean - low), "Student's t is symmetric"


@pytest.mark.parametrize("count", [5, 60])
def test_equal_values_have_no_width(count: int) -> None:
    assert mean_interval(torch.full((count,), 0.25), seeded()) == (0.25, 0.25)


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 2)])
def test_no_interval_of_fewer_than_two_values(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="N >= 2"):
        mean_interval(torch.ones(shape), seeded())


def naive_p(values: list[float]) -> float:
    flips = list(itertools.product((-1.0, 1.0), repeat=len(values)))
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in flips]
    return sum(total >= abs(sum(values)) - 1e-12 for total in sums) / len(sums)


@pytest.mark.parametrize(
    "values",
    [[1.0, 2.0, 3.0], [0.5, -0.5], [0.1, 0.2, -0.1, 0.4, 0.0], [-1.0, -2.0, -3.0, -4.0, -5.0]],
)
def test_sign_flips_by_counting_all(values: list[float]) -> None:
    found = sign_flip_p(torch.tensor(values, dtype=torch.float64), seeded())
    assert found == pytest.approx(naive_p(values))


def test_sign_flips_by_hand() -> None:
    assert sign_flip_p(torch.ones(6), seeded()) == 2 / 64
    assert sign_flip_p(torch.tensor([1.0] * 6 + [0.0] * 50), seeded()) == 2 / 64, (
        "ties are left out"
    )
    assert sign_flip_p(torch.zeros(9), seeded()) == 1.0 == sign_flip_p(torch.ones(1), seeded())
    assert sign_flip_p(torch.ones(16), seeded()) == 2 / 2**16, "the last that is counted"
    assert sign_flip_p(torch.ones(17), seeded()) == pytest.approx(1 / 20_001, rel=3.0)
    assert sign_flip_p(torch.ones(17), seeded()) != 2 / 2**17, "the first that is drawn"
    assert sign_flip_p(torch.ones(60), seeded()) == pytest.approx(1 / 20_001)


def test_drawn_sign_flips_are_near_the_normal_test() -> None:
    values = torch.randn(80, generator=seeded(3), dtype=torch.float64) + 0.2
    z = float(values.mean()) / math.sqrt(float(values.square().mean()) / 80)
    expected = math.erfc(abs(z) / math.sqrt(2.0))
    assert sign_flip_p(values, seeded()) == pytest.approx(expected, abs=0.012)
    assert sign_flip_p(values, seeded()) == sign_flip_p(-values, seeded())


def test_chance_alone_is_called_more_than_chance_in_one_of_twenty() -> None:
    samples = torch.randn(1500, 10, generator=seeded(5), dtype=torch.float64)
    share = sum(sign_flip_p(row, seeded()) < 0.05 for row in samples) / len(samples)
    assert 0.035 <= share <= 0.065


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert (
        holm([0.5, 0.9]) == [1.0, 1.0] == holm([0.7, 0.9])
        and holm([0.02]) == [0.02]
        and holm([]) == []
    )
    assert holm([0.04, 0.01]) == pytest.approx([0.04, 0.02])


@pytest.mark.parametrize("count", [6, 12, 24])
@pytest.mark.parametrize("share", [0.8, 0.95, 0.98])
def test_an_interval_of_successes_covers_their_share(count: int, share: float) -> None:
    generator, trials = seeded(), 300
    covered = 0
    for _ in range(trials):
        values = torch.rand(count, generator=generator) < share
        low, high = bounded_interval(values, (0.0, 1.0), generator)
        covered += low <= share <= high
    assert covered / trials >= 0.93


def test_successes_alone_by_hand() -> None:
    low, high = bounded_interval(torch.ones(24), (0.0, 1.0), seeded())
    assert high == 1.0 and low == pytest.approx(0.8575, abs=1e-4)  # 0.025^(1/24)
    low, high = bounded_interval(torch.zeros(24), (0.0, 1.0), seeded())
    assert low == 0.0 and high == pytest.approx(0.1425, abs=1e-4)
    assert bounded_interval(torch.full((4,), 5.0), (1.0, 5.0), seeded())[0] == pytest.approx(
        5.0 - 4.0 * (1.0 - 0.025**0.25)
    )
    assert bounded_interval(torch.full((4,), 0.5), (0.0, 1.0), seeded()) == (0.5, 0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_is_no_proof(bad: float) -> None:
    values = torch.tensor([bad, 1.0, 2.0, 3.0])
    for measure in (mean_interval, sign_flip_p):
        with pytest.raises(ValueError, match="not a finite number"):
            measure(values, seeded())
