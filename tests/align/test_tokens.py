"""Masked diffusion on strings: tables against naive sums, and the exact law of SVDD."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from vp3d.align.svdd import svdd
from vp3d.align.tokens import (
    Strings,
    Tables,
    TokenModel,
    draw_strings,
    fill_best,
    law_of_rewards,
    mean_of_fills,
    posterior_mean,
    propose_tokens,
    total_variation,
    train_tokens,
)
from vp3d.worlds.strings import best_match, draw_chain, encode, gc_share, hits, transitions

MOTIF, ALPHA = "GA", 0.5


def model(length: int = 4) -> TokenModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = TokenModel(4, length, width=16, layers=1)
        with torch.no_grad():
            made.head.weight.mul_(6.0)  # far from uniform
        return made.eval()


@pytest.fixture(scope="module")
def tables() -> Tables:
    return Tables.of(model())


def reward_of(tables: Tables) -> Tensor:
    return best_match(tables.strings[tables.complete], MOTIF)


def test_probabilities_are_the_sum_over_all_orders(tables: Tables):
    network = model().requires_grad_(False)
    x = torch.tensor([2, 0, 3, 1])
    total = 0.0
    for order in itertools.permutations(range(4)):
        state, probability = torch.full((1, 4), 4), 1.0
        for place in order:
            law = torch.softmax(network(state).double(), -1)[0, place]
            probability *= float(law[x[place]])
            state[0, place] = x[place]
        total += probability / math.factorial(4)
    found = tables.probabilities()
    place = int((tables.complete == tables.number(x[None])).nonzero())
    assert float(found[place]) == pytest.approx(total, rel=1e-6)
    assert float(found.sum()) == pytest.approx(1.0)


def test_the_values_of_the_empty_string_are_those_of_the_whole_law(tables: Tables):
    p, r = tables.probabilities(), reward_of(tables)
    assert float(tables.expectation(r)[-1]) == pytest.approx(float((p * r).sum()))
    soft = ALPHA * math.log(float((p * (r / ALPHA).exp()).sum()))
    assert float(tables.soft_value(r, ALPHA)[-1]) == pytest.approx(soft)
    target = p * (r / ALPHA).exp()
    torch.testing.assert_close(tables.target(r, ALPHA), target / target.sum())


def test_looking_up_is_the_same_as_asking_the_network(tables: Tables):
    x = torch.randint(5, (50, 4), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        torch.softmax(tables(x), -1), torch.softmax(model()(x).double(), -1), atol=1e-6, rtol=1e-5
    )


def test_plain_draws_have_the_probabilities_of_the_tables(tables: Tables):
    drawn = draw_strings(tables, 20000, torch.Generator().manual_seed(0))
    counts = torch.bincount(tables.number(drawn), minlength=len(tables.strings))[tables.complete]
    p = tables.probabilities()
    expected = float((p * (1 - p) * 2 / math.pi / 20000).sqrt().sum() / 2)  # of exact draws
    assert total_variation(counts / 20000, p) < 1.5 * expected


def test_svdd_reaches_the_exact_target_as_the_proposals_increase(tables: Tables):
    r = reward_of(tables)
    levels = r.unique()
    target = law_of_rewards(r, tables.target(r, ALPHA), levels)
    value = tables.looked_up(tables.soft_value(r, ALPHA))
    distances = []
    for m in (1, 4, 32):
        generator = torch.Generator().manual_seed(1)
        drawn = svdd(Strings.start(tables, 6000), 4, propose_tokens, value, m, ALPHA, generator).x
        found = law_of_rewards(best_match(drawn, MOTIF), torch.full((6000,), 1 / 6000), levels)
        distances.append(total_variation(found, target))
    assert distances[0] > 0.15 > 0.1 > distances[1] > distances[2]
    assert distances[2] <= 0.03


def test_the_posterior_mean_fills_the_likeliest_letters(tables: Tables):
    state = Strings(tables, torch.tensor([[4, 0, 4, 4], [1, 2, 3, 0]]))
    filled = fill_best(state)
    assert filled[1].tolist() == [1, 2, 3, 0] and filled[0, 1] == 0
    law = torch.softmax(tables(state.x)[0], -1)
    assert filled[0].tolist() == [int(law[0].argmax()), 0, *law[2:].argmax(-1).tolist()]
    value = posterior_mean(lambda x: best_match(x, MOTIF))(state, 0)
    assert value[1] == best_match(state.x[1:], MOTIF)[0]


def test_the_mean_of_fills_is_that_of_independent_letters(tables: Tables):
    state = Strings(tables, torch.tensor([[4, 0, 1, 4]]))
    generator = torch.Generator().manual_seed(2)
    found = mean_of_fills(gc_share, 4000, generator)(state, 0)
    law = torch.softmax(tables(state.x)[0], -1)
    expected = (law[0, 1:3].sum() + law[3, 1:3].sum() + 1.0) / 4
    assert float(found) == pytest.approx(float(expected), abs=0.02)


def test_training_learns_the_chain():
    """With one letter left, a trained network knows the law that its neighbours imply."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = TokenModel(4, 3, width=32, layers=1)
    generator = torch.Generator().manual_seed(0)
    losses = train_tokens(
        network, lambda n, g: draw_chain(n, 3, g), 300, generator, batch=64, lr=1e-2
    )
    assert sum(losses[-50:]) < sum(losses[:50])
    x = torch.tensor([[a, 4, b] for a in range(4) for b in range(4)])
    table = transitions()
    exact = table[x[:, 0]] * table[:, x[:, 2]].T
    exact = exact / exact.sum(1, keepdim=True)
    found = torch.softmax(network(x)[:, 1].double(), -1)
    weights = (0.25 * table @ table)[x[:, 0], x[:, 2]]
    distance = float((weights * 0.5 * (found - exact).abs().sum(1)).sum() / weights.sum())
    assert distance < 0.15


def test_rewards_of_strings_by_hand():
    x = torch.stack([encode("GATGAT"), encode("CCGATC"), encode("AAAAAA")])
    assert hits(x, "GAT").tolist() == [2.0, 1.0, 0.0]
    assert best_match(x, "GAT").tolist() == [3.0, 3.0, 1.0]
    assert gc_share(x).tolist() == pytest.approx([2 / 6, 4 / 6, 0.0])
    with pytest.raises(ValueError):
        encode("GAX")
