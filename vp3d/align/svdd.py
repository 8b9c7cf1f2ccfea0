"""SVDD: steer a diffusion model by a reward that needs no gradient, and its baselines.

The target is p*(x) ~ p(x) exp(r(x) / alpha), where p is what the model draws and r a reward. Its
optimal step is

    p*(x_{i+1} | x_i) ~ p(x_{i+1} | x_i) exp(v(x_{i+1}) / alpha)
    v(x) = alpha log E[exp(r(x_S) / alpha) | x]

(Li et al., arXiv 2408.08252, equations 4 and 5). SVDD draws M proposals for each row of the batch
and keeps one of them with the probability softmax(v / alpha). alpha = 0 keeps the best one. v is
estimated; `steer.py` and `tokens.py` have the estimates.

The algorithm knows neither pictures nor strings. A `State` is B rows of anything; `propose` and
`value` say what a step is and what its result is worth. The choice is made row by row, never
across rows: rows that replace each other (`smc`) lose the diversity of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

FLAT = 20.0  # alpha above this many standard deviations of the values: the choice is nearly random
SHARP = 0.05  # alpha below this many: the choice is nearly the best one
LEAST_SPREAD = 1e-9  # of the values; less is that of equal ones


class State(Protocol):
    """B rows on their way from noise to a sample."""

    def __len__(self) -> int:
        """B."""
        ...

    def rows(self, index: Tensor) -> Self:
        """The rows `index` [R] int64, with all that was computed for them."""
        ...


S = TypeVar("S", bound=State)
# propose(state of B, step i, copies M, generator): a state of B * M, of which row b * M + m is the
# m-th proposal for row b, with noise of its own
Propose = Callable[[S, int, int, torch.Generator], S]
# value(state of R, step i): estimates [R] of v of the states after step i, higher is better
Value = Callable[[S, int], Tensor]


@dataclass(frozen=True)
class Choice:
    """What was chosen at one step.

    Attributes:
        step: i; the proposals are for the state after it.
        values: Estimates of v [B, M].
        chosen: Index of the proposal that each row continues with [B] int64.
        effective: Effective number of proposals, 1 / sum w^2, in [1, M]: the mean over the rows.
        unusable: How many of the values are not finite.
    """

    step: int
    values: Tensor
    chosen: Tensor
    effective: float
    unusable: int

    @property
    def mean(self) -> float:
        """Mean of the finite values; 0 if there are none."""
        found = self.values[torch.isfinite(self.values)]
        return float(found.mean()) if len(found) else 0.0

    @property
    def spread(self) -> float:
        """Mean over the rows of the standard deviation of the finite values of a row."""
        finite = torch.isfinite(self.values)
        count = finite.sum(1).clamp_min(1)
        values = torch.where(finite, self.values, 0.0).double()
        mean = values.sum(1) / count
        squares = torch.where(finite, (values - mean[:, None]).square(), 0.0)
        return float((squares.sum(1) / count).sqrt().mean())


def weights_of(values: Tensor, alpha: float) -> Tensor:
    """The probabilities softmax(v / alpha) of the proposals of each row.

    The largest value of a row is subtracted first, so that exp does not overflow for a small alpha.

    Args:
        values: Estimates of v [B, M]. One that is not finite has the weight 0, unless no value of
            its row is finite: then all proposals of the row are alike.
        alpha: Temperature, in units of the values, at least 0. 0 shares the weight among the
            largest values.

    Returns:
        [B, M] float64; each row adds up to 1.
    """
    finite = torch.isfinite(values)
    values = torch.where(finite, values.double(), -math.inf)
    values = torch.where(finite.any(1, keepdim=True), values, torch.zeros_like(values))
    below = values - values.amax(1, keepdim=True)
    if alpha == 0.0:
        best = (below == 0.0).double()
        return best / best.sum(1, keepdim=True)
    return torch.softmax(below / alpha, dim=1)


def svdd(
    state: S,
    steps: int,
    propose: Propose[S],
    value: Value[S],
    m: int,
    alpha: float,
    generator: torch.Generator,
    branch: tuple[float, float] = (0.0, 1.0),
    on_step: Callable[[Choice], None] | None = None,
) -> S:
    """Take `steps` steps, of which each continues with one of `m` proposals.

    With m = 1 this is plain sampling: `value` is not called, and no random number is drawn but
    those of `propose`.

    Args:
        state: The B rows before step 0.
        steps: The number of steps that have noise. A last step without noise is the caller's.
        propose: Draws the proposals of a step.
        value: Estimates what they are worth.
        m: M, proposals for each row and step, at least 1.
        alpha: Temperature, at least 0; 0 keeps the best proposal.
        generator: Draws the proposals and, unless alpha is 0, the choice among them.
        branch: The steps i with branch[0] <= i / steps < branch[1] have M proposals, the others 1.
        on_step: Called after each step that had a choice.

    Returns:
        The B rows after the last step.

    Raises:
        ValueError: if `m` is below 1, or `alpha` is negative or no number.
    """
    if m < 1 or not 0.0 <= alpha < math.inf:
        raise ValueError(f"svdd takes m >= 1 and alpha >= 0, not m={m} and alpha={alpha}")
    for i in range(steps):
        copies = m if branch[0] <= i / steps < branch[1] else 1
        batch = len(state)
        state = propose(state, i, copies, generator)
        if copies == 1:
            continue
        values = value(state, i).detach().reshape(batch, copies)
        weights = weights_of(values, alpha)
        chosen = _draw(weights, alpha, generator).to(values.device)
        state = state.rows(torch.arange(batch, device=values.device) * copies + chosen)
        if on_step is not None:
            effective = float((1.0 / weights.square().sum(1)).mean())
            unusable = int((~torch.isfinite(values)).sum())
            on_step(Choice(i, values, chosen, effective, unusable))
    return state


def _draw(weights: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """One index [B] for each row of `weights` [B, M]; the first of the largest if alpha is 0."""
    if alpha == 0.0:
        return weights.argmax(1)
    return torch.multinomial(weights.to(generator.device), 1, generator=generator).squeeze(1)


def advice(choices: list[Choice], alpha: float) -> str:
    """One line if `alpha` does not fit the spread of the values, or they say nothing; else "".

    Args:
        choices: Those of one draw, from `on_step`.
        alpha: The temperature of the draw.
    """
    count = sum(choice.values.numel() for choice in choices)
    unusable = sum(choice.unusable for choice in choices)
    if unusable:
        return (
            f"the reward is not a number for {unusable:,} of {count:,} proposals, which were not "
            "chosen where others were there; look at the drawn pictures, and see prior.dtype"
        )
    spreads = [choice.spread for choice in choices]
    spread = sum(spreads) / max(len(spreads), 1)
    if choices and spread < LEAST_SPREAD:
        return "the reward is the same for all proposals, so it steered nothing: use another"
    if not choices or alpha == 0.0:
        return ""
    if alpha > FLAT * spread:
        return (
            f"alpha {alpha:g} is {alpha / spread:.3g} times the spread of the values "
            f"({spread:.3g}): it hardly distinguishes the proposals; a lower alpha, for example "
            f"{spread:.2g}, does"
        )
    if alpha < SHARP * spread:
        return (
            f"alpha {alpha:g} is {alpha / spread:.2g} times the spread of the values "
            f"({spread:.3g}): it nearly always keeps the best proposal, as alpha 0 does"
        )
    return ""


def smc(
    state: S,
    steps: int,
    propose: Propose[S],
    value: Value[S],
    n: int,
    alpha: float,
    generator: torch.Generator,
    threshold: float = 0.5,
) -> S:
    """Sequential Monte Carlo with `n` particles a prompt, the baseline of SVDD.

    The weights are the product of exp((v_new - v_old) / alpha) over the steps (Wu et al.,
    arXiv 2306.17775). Particles of one prompt replace each other, never those of another, when the
    effective number of them falls below `threshold` * n (systematic resampling).

    Args:
        state: B * n rows, of which the rows b * n ... b * n + n - 1 are the particles of prompt b.
        steps: The number of steps that have noise.
        propose: Draws the next states, one for each particle.
        value: Estimates what they are worth.
        n: Particles a prompt, at least 1.
        alpha: Temperature, above 0.
        generator: Draws the next states and the resampling.
        threshold: Share of n, in [0, 1].

    Returns:
        The B * n rows after the last step. Take the one with the highest reward of each prompt.

    Raises:
        ValueError: if the rows are no multiple of n, or `alpha` is not above 0.
    """
    if n < 1 or len(state) % n or alpha <= 0.0:
        raise ValueError(f"smc takes a multiple of n={n} rows and alpha > 0, not alpha={alpha}")
    before: Tensor | None = None
    log_weights = torch.zeros(len(state) // n, n, dtype=torch.float64)
    for i in range(steps):
        state = propose(state, i, 1, generator)
        values = value(state, i).detach().double().cpu().reshape(-1, n)
        log_weights += (values if before is None else values - before) / alpha
        weights = weights_of(log_weights, 1.0)
        poor = 1.0 / weights.square().sum(1) < threshold * n
        index = torch.arange(n).repeat(len(weights), 1)
        index[poor] = _systematic(weights[poor], generator)
        log_weights[poor] = 0.0
        before = values.gather(1, index)
        rows = (torch.arange(len(weights))[:, None] * n + index).flatten()
        state = state.rows(rows)
    return state


def _systematic(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Indices [B, n] that repeat each particle about n times its weight [B, n]."""
    batch, n = weights.shape
    start = torch.rand(batch, 1, generator=generator, device=generator.device).cpu().double()
    points = (torch.arange(n) + start) / n
    return torch.searchsorted(weights.cumsum(1), points).clamp_max(n - 1)


def expected_best(rewards: Tensor, n: int) -> Tensor:
    """The mean reward of best-of-n, from a pool of draws.

    It is the mean of the largest of n over all subsets of the pool, without bias, so that one pool
    serves every n: sum_k r_(k) C(k - 1, n - 1) / C(K, n) over the sorted rewards.

    Args:
        rewards: Those of K independent draws for each prompt [B, K].
        n: Draws of which the best is kept, 1 to K.

    Returns:
        [B] float64.

    Raises:
        ValueError: if `n` is out of range.

    Example:
        >>> expected_best(torch.tensor([[3.0, 1.0, 2.0]]), 2)  # (2 + 3 + 3) / 3
        tensor([2.6667], dtype=torch.float64)
    """
    count = rewards.shape[1]
    if not 1 <= n <= count:
        raise ValueError(f"the best of {n} cannot be estimated from {count} draws")
    shares = [math.comb(k - 1, n - 1) / math.comb(count, n) for k in range(1, count + 1)]
    return rewards.double().sort(1).values @ torch.tensor(shares, dtype=torch.float64)
