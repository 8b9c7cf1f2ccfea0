"""Intervals and tests for means over few prompts.

* `mean_interval`: each end is the farther one of Student's t and the studentised bootstrap
  (bootstrap-t; Efron & Tibshirani 1993, section 12.5). Alone, the first is too narrow for skewed
  shares, the second for differences with many ties. The percentile bootstrap is too narrow for
  both: its 95 % interval of 6 normal values covers the mean in 85 % of all cases.
  tests/evaluate/test_intervals.py simulates the coverage.
* `sign_flip_p`: whether paired differences are larger than chance, without a distribution.
* `holm`: p-values of several comparisons at once (Holm 1979).

* `bounded_interval`: the same for values with limits. If all are at one limit, such as 24 of 24
  successes, the bootstrap has no width: then the other end is exact (Clopper & Pearson 1934).

If all values are equal otherwise, the interval has no width: the sample says nothing of its spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.special import stdtrit
from torch import Tensor

CONFIDENCE = 0.95
BOOTSTRAP_SAMPLES = 2000
LEAST_FOR_BOOTSTRAP = 6  # values; fewer have too few different bootstrap samples
MOST_FOR_ALL_FLIPS = 16  # differences up to which every pattern of signs is counted
RANDOM_FLIPS = 20_000  # patterns of signs that are drawn for more differences


def mean_interval(
    values: Tensor,
    generator: torch.Generator,
    confidence: float = CONFIDENCE,
    samples: int = BOOTSTRAP_SAMPLES,
) -> tuple[float, float]:
    """An interval that covers the mean of the population with probability `confidence`.

    Args:
        values: `[N]`, any range, N >= 2; booleans count as 0 and 1.
        generator: draws the bootstrap samples.
        confidence: the share of all such intervals that contain the mean, in (0, 1).
        samples: the number of bootstrap samples.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: `values` has fewer than two values, more than one dimension, or a value that is
            not finite.
    """
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs values [N] with N >= 2, got {tuple(values.shape)}")
    values = _finite(values)
    count, mean = len(values), float(values.mean())
    error = float(values.std()) / math.sqrt(count)
    tail = (1.0 - confidence) / 2.0
    reach = float(stdtrit(count - 1, 1.0 - tail))
    low, high = mean - reach * error, mean + reach * error
    if count < LEAST_FOR_BOOTSTRAP:
        return low, high
    drawn = values[torch.randint(count, (samples, count), generator=generator)]
    spread = drawn.std(1)
    ratios = ((drawn.mean(1) - mean) / (spread / math.sqrt(count)))[spread > 0.0]
    if not len(ratios):
        return low, high
    ends = torch.tensor([tail, 1.0 - tail], dtype=torch.float64)
    smallest, largest = torch.quantile(ratios, ends).tolist()
    return min(low, mean - largest * error), max(high, mean - smallest * error)


def bounded_interval(
    values: Tensor,
    limits: tuple[float, float],
    generator: torch.Generator,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """`mean_interval` of values that have limits, such as shares in [0, 1], inside the limits.

    N values of a population with mean m in [0, 1] are all 1 with a probability of at most m^N, so
    the lower end of N ones is the m at which that is half of the error allowed.

    Args:
        values: `[N]` inside the limits, N >= 2; booleans count as 0 and 1.
        limits: the least and the largest value that is possible.
        generator: draws the bootstrap samples.
        confidence: the share of all such intervals that contain the mean, in (0, 1).

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: as for `mean_interval`.
    """
    low, high = mean_interval(values, generator, confidence)
    reach = (limits[1] - limits[0]) * (1.0 - ((1.0 - confidence) / 2.0) ** (1.0 / len(values)))
    if bool((values == limits[1]).all()):
        return limits[1] - reach, limits[1]
    if bool((values == limits[0]).all()):
        return limits[0], limits[0] + reach
    return max(low, limits[0]), min(high, limits[1])


def _finite(values: Tensor) -> Tensor:
    """The values as float64; ValueError if one is not finite, as every figure would be."""
    values = values.double()
    if not bool(values.isfinite().all()):
        raise ValueError("a figure that is not a finite number")
    return values


def sign_flip_p(differences: Tensor, generator: torch.Generator) -> float:
    """Two-sided p-value of "the mean difference is 0", by flipping signs of paired differences.

    Up to `MOST_FOR_ALL_FLIPS` differences every pattern of signs is counted, so the p-value is
    exact, and with N differences other than 0 at least 2 / 2^N. With more, patterns are drawn.

    Args:
        differences: `[N]`, any range, N >= 1.
        generator: draws the patterns.

    Returns:
        The share of the patterns whose mean is at least as far from 0, in (0, 1].

    Raises:
        ValueError: a difference is not finite.
    """
    values = _finite(differences)
    values = values[values != 0.0]  # a flip does not change them
    count = len(values)
    if count == 0:
        return 1.0
    exact = count <= MOST_FOR_ALL_FLIPS
    if exact:
        bits = torch.arange(2**count)[:, None] >> torch.arange(count) & 1
    else:
        bits = torch.randint(2, (RANDOM_FLIPS, count), generator=generator)
    means = (2.0 * bits.double() - 1.0) @ values / count
    observed = abs(float(values.mean()))
    as_far = int((means.abs() >= observed * (1.0 - 1.0e-12)).sum())
    # The observed pattern counts as one of the drawn ones, so that p is never 0.
    return as_far / len(means) if exact else (as_far + 1) / (len(means) + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the same order (Holm 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min((len(p_values) - rank) * p_values[i], 1.0))
        corrected[i] = largest
    return corrected
