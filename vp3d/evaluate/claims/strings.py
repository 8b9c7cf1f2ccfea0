"""The claims on strings: the exact law of SVDD, and design of strings with a motif."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vp3d.align.svdd import Value, expected_best, svdd
from vp3d.align.tokens import (
    Strings,
    Tables,
    TokenModel,
    draw_strings,
    law_of_rewards,
    mean_of_fills,
    posterior_mean,
    propose_tokens,
    total_variation,
    train_tokens,
)
from vp3d.evaluate.claims.frame import Bench, Cell, Claim, Finding, Table, Verdict, with_interval
from vp3d.train.generators import make_generator
from vp3d.worlds.strings import best_match, draw_chain, hits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHORT, SHORT_UPDATES = 6, 1500  # letters and training updates of the exact part
MOTIFS = ("GAT", "CAG", "TTA")
ALPHA, DRAWS = 0.5, 20_000
COUNTS = (1, 2, 4, 8, 16, 32)
PM_DRAWS = 5_000  # the posterior mean asks the network for every proposal
LONG, LONG_UPDATES, MOTIF = 30, 1500, "GATC"  # of the design part
POOL, DESIGNED, DESIGN_M, FILLS = 3_000, 100, (2, 4, 10, 20), 16
LIMIT = 0.03  # total variation at the largest M
VALUES = {  # exact values, and what they are
    "exact soft value": "the v of the equation",
    "exact E[r]": "the mean reward of the strings that a state may become, without alpha",
}


def trained(length: int, updates: int, seed: int) -> TokenModel:
    """A model of the chain, from named generators."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TokenModel(4, length)
    generator = make_generator(seed, f"strings {length}")
    train_tokens(model, lambda n, g: draw_chain(n, length, g), updates, generator)
    return model


def exact(tables: Tables, motif: str) -> dict[str, Any]:
    """Total variation of the reward's law and of the letters' marginals, by value and M."""
    strings = tables.strings[tables.complete]
    reward = best_match(strings, motif)
    levels, target = reward.unique(), tables.target(reward, ALPHA)
    law = law_of_rewards(reward, target, levels)
    letters = _marginals(strings, target)
    values: dict[str, Value[Strings]] = {
        "exact soft value": tables.looked_up(tables.soft_value(reward, ALPHA)),
        "exact E[r]": tables.looked_up(tables.expectation(reward)),
        "posterior mean": posterior_mean(partial(best_match, motif=motif)),
    }
    found: dict[str, Any] = {}
    for name, value in values.items():
        count = PM_DRAWS if name == "posterior mean" else DRAWS
        weights = torch.full((count,), 1.0 / count, dtype=torch.float64)
        for m in COUNTS:
            generator = make_generator(m, f"{motif} {name}")
            start = Strings.start(tables, count)
            drawn = svdd(start, SHORT, propose_tokens, value, m, ALPHA, generator).x
            rewards = law_of_rewards(best_match(drawn, motif), weights, levels)
            distance = (_marginals(drawn, weights) - letters).abs().sum(1).mean() / 2
            found.setdefault(name, []).append([total_variation(rewards, law), float(distance)])
    return found


def _marginals(x: Tensor, weights: Tensor) -> Tensor:
    """The probability [L, 4] of each letter in each place of strings [R, L] with weights [R]."""
    found = torch.zeros(x.shape[1], 4, dtype=torch.float64)
    for place in range(x.shape[1]):
        found[place].index_add_(0, x[:, place], weights)
    return found


def design(model: TokenModel) -> dict[str, Any]:
    """Hits of the motif: a pool of plain strings, and steered strings by each value and M."""
    reward: Callable[[Tensor], Tensor] = partial(hits, motif=MOTIF)
    pool = draw_strings(model, POOL, make_generator(0, "pool"))
    found: dict[str, Any] = {"pool": reward(pool).tolist(), "steered": {}}
    for m in DESIGN_M:
        generator = make_generator(m, "design")
        values = {
            f"PM, M = {m}": posterior_mean(reward),
            f"mean of {FILLS} fills, M = {m}": mean_of_fills(reward, FILLS, generator),
        }
        for name, value in values.items():
            start = Strings.start(model, DESIGNED)
            drawn = svdd(start, LONG, propose_tokens, value, m, 0.0, generator).x
            found["steered"][name] = {
                "hits": reward(drawn).tolist(),
                "distinct": len({tuple(x) for x in drawn.tolist()}),
            }
    return found


@lru_cache(maxsize=1)
def short_tables() -> Tables:
    """The exact law of the network for short strings, trained once a process."""
    return Tables.of(trained(SHORT, SHORT_UPDATES, 0))


def measure(bench: Bench) -> Finding:
    """Both parts, each trained and measured once."""
    settings: dict[str, Any] = {
        "length": SHORT,
        "updates": SHORT_UPDATES,
        "alpha": ALPHA,
        "draws": DRAWS,
    }
    short = {
        motif: bench.once(
            f"exact-{motif}",
            settings | {"motif": motif, "counts": COUNTS},
            lambda motif=motif: exact(short_tables(), motif),  # type: ignore[misc]
        )
        for motif in MOTIFS
    }
    settings = {"length": LONG, "updates": LONG_UPDATES, "motif": MOTIF, "m": DESIGN_M}
    long = bench.once("design", settings, lambda: design(trained(LONG, LONG_UPDATES, 1)))
    return finding(short, long)


def finding(short: dict[str, Any], long: dict[str, Any]) -> Finding:
    """The verdicts and tables of both parts."""
    verdicts = [
        *(_reaches(short, name) for name in VALUES),
        _biased(short),
    ]
    pool = torch.tensor([long["pool"]], dtype=torch.float64)
    best = {n: float(expected_best(pool, n)) for n in (1, 10, 30, 100, 300)}
    steered = {
        name: torch.tensor(one["hits"], dtype=torch.float64)
        for name, one in long["steered"].items()
    }
    pm, fills = (
        float(steered[f"{kind}, M = 10"].mean()) for kind in ("PM", f"mean of {FILLS} fills")
    )
    verdicts += [
        Verdict("PM with M = 10 has at least 3 times the hits of best-of-10",
                f"{pm:.2f} and {best[10]:.2f}, {pm / best[10]:.1f} times", pm >= 3.0 * best[10]),
        Verdict("PM with M = 10 has more hits than best-of-300",
                f"{pm:.2f} and {best[300]:.2f}", pm > best[300]),
        Verdict(f"The mean of {FILLS} fills with M = 10 has more hits than best-of-300",
                f"{fills:.2f} and {best[300]:.2f}", fills > best[300]),
    ]  # fmt: skip
    rows: list[list[Cell]] = [["plain", with_interval(pool[0], 2), ""]]
    rows += [[f"best of {n}", f"{value:.2f}", ""] for n, value in best.items() if n > 1]
    rows += [
        [name, with_interval(values, 2), f"{long['steered'][name]['distinct']} of {DESIGNED}"]
        for name, values in steered.items()
    ]
    tables = [_exact_table(short, motif) for motif in short]
    tables.append(Table(f"Design: hits of {MOTIF} in {LONG} letters",
                        ("drawing", "hits (95 % interval)", "distinct strings"), rows))  # fmt: skip
    notes = [
        f"Of {DRAWS:,} exact draws the total variation would be about 0.005 by chance; of the "
        f"{PM_DRAWS:,} draws by the posterior mean about 0.01.",
        "The network is as it was trained: its own law is summed, not that of the chain.",
        "E[r] = E[r(x_S) | x] is the value that a regression on rewards learns. The soft value "
        "alpha log E[exp(r(x_S) / alpha) | x] is above it (Jensen's inequality), the more the more "
        "the rewards of a state's strings differ. Only the soft value makes SVDD exact in the "
        "limit of many proposals; with E[r] a part of the distance stays, however large M is, and "
        "the statement on E[r] says how large it is.",
        f"The mean of fills draws the masked letters independently of each other, so that it is "
        f"a Monte-Carlo value with a bias of its own; the values of {MOTIF} have alpha 0.",
    ]
    return Finding(verdicts, tables, notes, partial(_plot, short))


def _reaches(short: dict[str, Any], name: str) -> Verdict:
    """Whether the law of the reward is within `LIMIT` of the target for every motif."""
    found = {motif: values[name][-1][0] for motif, values in short.items()}
    falling = all(
        all(a[0] > b[0] for a, b in zip(values[name], values[name][1:], strict=False))
        for values in short.values()
    )
    text = ", ".join(f"{motif} {value:.3f}" for motif, value in found.items())
    text += "; falls with every M" if falling else "; does not fall with every M"
    return Verdict(
        f"With the {name} ({VALUES[name]}) the total variation of the reward is at most {LIMIT} "
        f"at M = {COUNTS[-1]}, and falls with M",
        text,
        max(found.values()) <= LIMIT and falling,
    )


def _biased(short: dict[str, Any]) -> Verdict:
    """Whether the posterior mean keeps wrong marginals (a bias, as expected)."""
    found = {motif: values["posterior mean"][-1][1] for motif, values in short.items()}
    text = ", ".join(f"{motif} {value:.3f}" for motif, value in found.items())
    return Verdict(
        f"The letters drawn by the posterior mean stay at least 0.05 from the target at M = "
        f"{COUNTS[-1]}: it is biased",
        text,
        min(found.values()) >= 0.05,
    )


def _exact_table(short: dict[str, Any], motif: str) -> Table:
    """Total variation of rewards / of letters."""
    rows: list[list[Cell]] = [
        [name, *(f"{reward:.3f} / {letters:.3f}" for reward, letters in values)]
        for name, values in short[motif].items()
    ]
    columns = ("value", *(f"M = {m}" for m in COUNTS))
    title = f"Exact target, motif {motif}: total variation of the reward / of the letters"
    return Table(title, columns, rows)


def _plot(short: dict[str, Any], axes: Axes) -> None:
    first: Sequence[str] = list(short)
    for name, values in short[first[0]].items():
        axes.plot(COUNTS, [reward for reward, _ in values], "o-", label=name)
    axes.axhline(LIMIT, color="grey", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="proposals M",
             ylabel=f"total variation of the reward, motif {first[0]}")  # fmt: skip
    axes.legend()


CLAIM = Claim(
    "strings",
    "SVDD on strings: the exact law, and design",
    "Does SVDD draw from p(x) exp(r(x) / alpha) / Z? For strings of "
    f"{SHORT} letters the target is summed over all strings, for the law of the trained network. "
    f"The reward is the largest number of letters of a motif in one place, alpha {ALPHA}. The "
    f"second part designs strings of {LONG} letters with many copies of a motif, alpha 0, against "
    "best-of-n.",
    measure,
)
