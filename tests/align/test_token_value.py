"""The Monte-Carlo value of strings against sums, and the exact mean of a tilted chain."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch

from tests.align.test_tokens import model
from vp3d.align.svdd import svdd
from vp3d.align.token_value import StringValue, monte_carlo, roll_out_strings
from vp3d.align.tokens import Strings, Tables, propose_tokens
from vp3d.align.value import Regressor, fit_value
from vp3d.worlds.strings import LETTERS, best_match, encode, hits, tilted_hits, transitions

MOTIF, ALPHA = "GA", 0.5
REWARD = partial(best_match, motif=MOTIF)


@pytest.fixture(scope="module")
def tables() -> Tables:
    return Tables.of(model())


def fit(tables: Tables, alpha: float) -> Regressor:
    rollouts = roll_out_strings(tables, 3000, REWARD, torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = StringValue(4, 4, width=32, layers=1)
    generator = torch.Generator().manual_seed(1)
    return fit_value(rollouts, 400, generator, alpha, network=network)


def test_roll_outs_are_the_states_of_plain_draws(tables: Tables) -> None:
    found = roll_out_strings(tables, 5, REWARD, torch.Generator().manual_seed(3))
    state, generator = Strings.start(tables, 5), torch.Generator().manual_seed(3)
    for i in range(4):
        state = propose_tokens(state, i, 1, generator)
        if i < 3:
            rows = found.step == i + 1
            assert torch.equal(found.x[rows], state.x)
            assert ((state.x < 4).sum(1) == i + 1).all()
    assert torch.equal(found.reward, REWARD(state.x).float().repeat(3))


@pytest.mark.parametrize(("alpha", "unexplained"), [(0.0, 0.05), (ALPHA, 0.3)])
def test_the_fit_knows_the_exact_value_and_leads_to_the_target(
    tables: Tables, alpha: float, unexplained: float
) -> None:
    value = fit(tables, alpha)
    reward = REWARD(tables.strings[tables.complete])
    exact = tables.soft_value(reward, ALPHA) if alpha else tables.expectation(reward)
    states = roll_out_strings(tables, 500, REWARD, torch.Generator().manual_seed(9))
    truth = exact[tables.number(states.x)]
    error = value(states.x, states.step).double() - truth
    assert float(error.square().mean() / truth.var()) < unexplained
    start, generator = Strings.start(tables, 1000), torch.Generator().manual_seed(2)
    drawn = svdd(start, 4, propose_tokens, monte_carlo(value, REWARD), 16, ALPHA, generator).x
    target = float((tables.target(reward, ALPHA) * reward).sum())
    plain = float((tables.probabilities() * reward).sum())
    assert float(REWARD(drawn).mean()) == pytest.approx(target, abs=0.2 * (target - plain))


def test_a_complete_string_has_its_reward_and_not_a_guess(tables: Tables) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = StringValue(4, 4, width=16, layers=1)
    value = monte_carlo(Regressor(network, 5.0, 1.0, 7.0), REWARD)
    x = torch.stack([encode("GATT"), encode("CCCC")])
    assert value(Strings(tables, x), 3).tolist() == [2.0, 0.0]


@pytest.mark.parametrize("motif", ["GA", "AA", "GAG"])
@pytest.mark.parametrize("alpha", [0.7, math.inf])
def test_the_mean_hits_of_the_tilted_chain_are_those_of_all_strings(
    motif: str, alpha: float
) -> None:
    table = transitions()
    strings = torch.tensor(list(itertools.product(range(len(LETTERS)), repeat=5)))
    p = 0.25 * table[strings[:, :-1], strings[:, 1:]].prod(1)
    weights = p * torch.exp(hits(strings, motif) / alpha)
    expected = float((weights * hits(strings, motif)).sum() / weights.sum())
    assert tilted_hits(5, motif, alpha) == pytest.approx(expected, rel=1e-12)
