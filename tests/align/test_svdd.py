"""SVDD's choice among proposals, its cost, and the baselines, on states of one number."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from vp3d.align.svdd import Choice, advice, expected_best, smc, svdd, weights_of


@dataclass
class Numbers:
    """A random walk of B numbers, each with the name of its row."""

    x: Tensor
    owner: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: Tensor) -> Numbers:
        return Numbers(self.x[index], self.owner[index])


def walk(state: Numbers, i: int, copies: int, generator: torch.Generator) -> Numbers:
    x = state.x.repeat_interleave(copies)
    x = x + torch.randn(len(x), generator=generator, dtype=x.dtype)
    return Numbers(x, state.owner.repeat_interleave(copies))


def higher(state: Numbers, i: int) -> Tensor:
    return state.x


def start(count: int) -> Numbers:
    return Numbers(torch.zeros(count, dtype=torch.float64), torch.arange(count))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_one_proposal_is_plain_sampling_and_asks_for_no_value():
    def never(state: Numbers, i: int) -> Tensor:
        raise AssertionError("no value is needed")

    found = svdd(start(4), 5, walk, never, 1, 0.3, seeded())
    generator, expected = seeded(), torch.zeros(4, dtype=torch.float64)
    for _ in range(5):
        expected = expected + torch.randn(4, generator=generator, dtype=torch.float64)
    assert torch.equal(found.x, expected)


def test_alpha_zero_keeps_the_best_of_each_row():
    choices: list[Choice] = []
    found = svdd(start(3), 4, walk, higher, 6, 0.0, seeded(), on_step=choices.append)
    generator, expected = seeded(), torch.zeros(3, dtype=torch.float64)
    for step in range(4):
        noise = torch.randn(18, generator=generator, dtype=torch.float64).view(3, 6)
        assert torch.equal(choices[step].chosen, noise.argmax(1))
        expected = expected + noise.amax(1)
    torch.testing.assert_close(found.x, expected)
    assert torch.equal(found.owner, torch.arange(3))  # rows never replace each other
    assert [choice.effective for choice in choices] == [1.0] * 4


def test_a_small_alpha_is_the_arg_max_and_a_large_one_is_plain_sampling_in_law():
    generator = torch.Generator().manual_seed(3)
    sharp = svdd(start(2000), 1, walk, higher, 8, 1e-4, generator)
    assert float(sharp.x.mean()) == pytest.approx(1.4236, abs=0.06)  # mean of the largest of 8
    flat = svdd(start(2000), 1, walk, higher, 8, 1e6, generator)
    assert abs(float(flat.x.mean())) < 0.08 and float(flat.x.std()) == pytest.approx(1.0, abs=0.06)


def test_one_step_has_the_mean_of_the_tilted_normal():
    """p(x) exp(x / alpha) of a standard normal is a normal with mean 1 / alpha."""
    found = svdd(start(4000), 1, walk, higher, 200, 2.0, torch.Generator().manual_seed(1))
    assert float(found.x.mean()) == pytest.approx(0.5, abs=0.06)


def test_weights_do_not_overflow_and_skip_what_is_no_number():
    weights = weights_of(torch.tensor([[1e5, 1e5 - 1.0], [float("nan"), 2.0]]), 1e-3)
    assert weights.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    nothing = weights_of(torch.full((1, 4), float("nan")), 0.0)
    assert nothing.tolist() == [[0.25] * 4]
    assert weights_of(torch.tensor([[2.0, 2.0, 1.0]]), 0.0).tolist() == [[0.5, 0.5, 0.0]]
    by_hand = torch.tensor([[1.0, 2.0]]).double().exp()
    torch.testing.assert_close(weights_of(torch.tensor([[1.0, 2.0]]), 1.0), by_hand / by_hand.sum())


def test_only_the_steps_of_the_branch_have_proposals():
    rows: list[tuple[int, int]] = []

    def counted(state: Numbers, i: int, copies: int, generator: torch.Generator) -> Numbers:
        rows.append((i, copies))
        return walk(state, i, copies, generator)

    svdd(start(1), 4, counted, higher, 3, 0.0, seeded(), branch=(0.25, 0.75))
    assert rows == [(0, 1), (1, 3), (2, 3), (3, 1)]


@pytest.mark.parametrize(
    ("m", "alpha"), [(0, 0.0), (2, -1.0), (2, float("nan")), (2, float("inf"))]
)
def test_numbers_out_of_range_are_refused(m: int, alpha: float):
    with pytest.raises(ValueError, match="svdd takes"):
        svdd(start(1), 1, walk, higher, m, alpha, seeded())


def choice(values: list[list[float]]) -> Choice:
    return Choice(0, torch.tensor(values), torch.zeros(len(values), dtype=torch.long), 1.0, 0)


def test_advice_names_an_alpha_that_does_not_fit_the_spread():
    spread = [choice([[0.0, 0.2]])]  # standard deviation 0.1
    assert "hardly distinguishes the proposals" in advice(spread, 5.0)
    assert "50 times the spread of the values (0.1)" in advice(spread, 5.0)
    assert "as alpha 0 does" in advice(spread, 1e-4)
    assert advice(spread, 0.1) == "" and advice(spread, 0.0) == "" and advice([], 1.0) == ""
    for alpha in (0.0, 1.0):
        assert "the same for all proposals" in advice([choice([[1.0, 1.0]])], alpha)


def test_advice_counts_rewards_that_are_no_numbers():
    def broken(state: Numbers, i: int) -> Tensor:
        return torch.where(torch.arange(len(state)) % 4 == 0, float("nan"), state.x)

    choices: list[Choice] = []
    svdd(start(2), 3, walk, broken, 4, 0.0, seeded(), on_step=choices.append)
    assert all((found.chosen != 0).all() for found in choices)
    assert "not a number for 6 of 24 proposals" in advice(choices, 0.0)
    assert all(torch.isfinite(torch.tensor([found.mean, found.spread])).all() for found in choices)


def test_particles_replace_each_other_within_a_prompt_only():
    state = Numbers(torch.zeros(40, dtype=torch.float64), torch.arange(40) // 20)
    found = smc(state, 6, walk, higher, 20, 0.3, seeded())
    assert torch.equal(found.owner, torch.arange(40) // 20)
    plain = svdd(start(40), 6, walk, higher, 1, 0.0, seeded())
    assert float(found.x.mean()) > float(plain.x.mean()) + 2.0
    with pytest.raises(ValueError, match="multiple of n=3"):
        smc(state, 1, walk, higher, 3, 0.3, seeded())


def test_smc_with_all_its_steps_has_the_mean_of_the_tilted_normal():
    """A sum of 4 standard normals tilted by exp(x / alpha) has the mean 4 / alpha."""
    state = Numbers(torch.zeros(20000, dtype=torch.float64), torch.zeros(20000).long())
    found = smc(state, 4, walk, higher, 20000, 2.0, seeded(), threshold=1.0)
    assert float(found.x.mean()) == pytest.approx(2.0, abs=0.1)


def test_expected_best_is_the_mean_over_all_subsets():
    pool = torch.rand(2, 6, generator=seeded())
    for n in (1, 2, 5, 6):
        for row in range(2):
            subsets = list(itertools.combinations(pool[row].tolist(), n))
            naive = sum(map(max, subsets)) / len(subsets)
            assert float(expected_best(pool, n)[row]) == pytest.approx(naive)
    with pytest.raises(ValueError, match="best of 7"):
        expected_best(pool, 7)
