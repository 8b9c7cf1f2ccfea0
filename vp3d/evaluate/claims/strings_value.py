"""The claim on the Monte-Carlo value of strings, against sums, best-of-n and PM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vp3d.align.svdd import Value, expected_best, svdd
from vp3d.align.token_value import StringValue, monte_carlo, roll_out_strings
from vp3d.align.tokens import (
    Conditional,
    StringReward,
    Strings,
    Tables,
    draw_strings,
    law_of_rewards,
    posterior_mean,
    propose_tokens,
    total_variation,
)
from vp3d.align.value import Regressor, fit_value
from vp3d.evaluate.claims.frame import Bench, Cell, Claim, Finding, Table, Verdict, with_interval
from vp3d.evaluate.claims.strings import (
    ALPHA,
    COUNTS,
    DESIGN_M,
    DESIGNED,
    DRAWS,
    LIMIT,
    LONG,
    LONG_UPDATES,
    MOTIF,
    MOTIFS,
    POOL,
    SHORT,
    SHORT_UPDATES,
    short_tables,
    trained,
)
from vp3d.train.generators import make_generator
from vp3d.worlds.strings import best_match, hits, tilted_hits

ROLL_OUTS, UPDATES, BATCH = 20_000, 3_000, 256
TESTED = 2_000  # other roll-outs, whose states the fit is compared with the sums on
CHUNK = 4096  # states that the network is asked for at once
EXPLAINED = 0.95  # of the variance of the exact values
TILT = 1.0  # alpha of the steered strings that are compared with the tilted chain


def fitted(
    model: Conditional, reward: StringReward, alpha: float, seed: int, updates: int
) -> Regressor:
    """A value of strings, from roll-outs of the model; all from named generators."""
    rollouts = roll_out_strings(model, ROLL_OUTS, reward, make_generator(seed, "roll-outs"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = StringValue(model.letters, model.length)
    generator = make_generator(seed, f"fit {alpha}")
    return fit_value(rollouts, updates, generator, alpha, BATCH, network=network)


def value_table(tables: Tables, regressor: Regressor, complete: Tensor) -> Tensor:
    """Fitted values [(K + 1)^L] float64 of all partly masked strings, so that each is asked once.

    Args:
        tables: Of the model that the value was fitted to.
        regressor: The value, whose network does not read the step.
        complete: Rewards [K^L] of the strings without mask, which they have as their values.
    """
    step = torch.zeros(len(tables.strings), dtype=torch.int64)
    parts = zip(tables.strings.split(CHUNK), step.split(CHUNK), strict=True)
    table = torch.cat([regressor(x, at).double() for x, at in parts])
    table[tables.complete] = complete.double()
    return table


def exact(tables: Tables, motif: str) -> dict[str, Any]:
    """The fits of both values: variance explained, and total variation of the reward for each M."""
    reward = partial(best_match, motif=motif)
    complete = reward(tables.strings[tables.complete])
    levels = complete.unique()
    target = law_of_rewards(complete, tables.target(complete, ALPHA), levels)
    weights = torch.full((DRAWS,), 1.0 / DRAWS, dtype=torch.float64)
    states = roll_out_strings(tables, TESTED, reward, make_generator(1, "tested"))
    sums = {0.0: tables.expectation(complete), ALPHA: tables.soft_value(complete, ALPHA)}
    found: dict[str, Any] = {}
    for name, alpha in (("fitted E[r]", 0.0), ("fitted soft value", ALPHA)):
        regressor = fitted(tables, reward, alpha, 0, UPDATES)
        truth = sums[alpha][tables.number(states.x)]
        table = value_table(tables, regressor, complete)
        error = table[tables.number(states.x)] - truth
        value = tables.looked_up(table)
        distances = []
        for m in COUNTS:
            generator = make_generator(m, f"{motif} {name}")
            start = Strings.start(tables, DRAWS)
            drawn = svdd(start, SHORT, propose_tokens, value, m, ALPHA, generator).x
            distances.append(
                total_variation(law_of_rewards(reward(drawn), weights, levels), target)
            )
        found[name] = {
            "explained": 1.0 - float(error.square().mean() / truth.var()),
            "distances": distances,
        }
    return found


def steered(
    model: Conditional, value: Value[Strings], m: int, alpha: float, name: str
) -> dict[str, Any]:
    """Hits of `DESIGNED` steered strings, and how many of them differ."""
    start = Strings.start(model, DESIGNED)
    generator = make_generator(m, name)
    drawn = svdd(start, LONG, propose_tokens, value, m, alpha, generator).x
    counts: Tensor = hits(drawn, MOTIF)
    return {"hits": counts.tolist(), "distinct": len({tuple(x) for x in drawn.tolist()})}


def design() -> dict[str, Any]:
    """Hits of the motif by the fitted value, and by the posterior mean, for each M."""
    model = trained(LONG, LONG_UPDATES, 1)
    reward: StringReward = partial(hits, motif=MOTIF)
    values = {
        "MC": monte_carlo(fitted(model, reward, 0.0, 0, UPDATES), reward),
        "PM": posterior_mean(reward),
    }
    arms = {
        f"{name}, M = {m}": steered(model, value, m, 0.0, f"design {name}")
        for name, value in values.items()
        for m in DESIGN_M
    }
    soft = monte_carlo(fitted(model, reward, TILT, 0, UPDATES), reward)
    tilted = {
        f"{name}, M = {m}": steered(model, value, m, TILT, f"tilted {name}")
        for name, value in {"soft MC": soft, "PM": values["PM"]}.items()
        for m in (10, 32)
    }
    pool = reward(draw_strings(model, POOL, make_generator(0, "pool"))).tolist()
    return {"pool": pool, "steered": arms, "tilted": tilted}


def measure(bench: Bench) -> Finding:
    """Both parts, each trained and measured once."""
    fit = {"roll_outs": ROLL_OUTS, "updates": UPDATES, "batch": BATCH}
    settings: dict[str, Any] = {"length": SHORT, "alpha": ALPHA, "draws": DRAWS, **fit}
    settings |= {"base_updates": SHORT_UPDATES, "tested": TESTED}
    short = {
        motif: bench.once(
            f"exact-{motif}",
            settings | {"motif": motif, "counts": COUNTS},
            lambda motif=motif: exact(short_tables(), motif),  # type: ignore[misc]
        )
        for motif in MOTIFS
    }
    settings = {"length": LONG, "motif": MOTIF, "m": DESIGN_M, "tilt": TILT, **fit}
    settings |= {"base_updates": LONG_UPDATES, "designed": DESIGNED, "pool": POOL}
    return finding(short, bench.once("design", settings, design))


def finding(short: dict[str, Any], long: dict[str, Any]) -> Finding:
    """The verdicts and tables of both parts."""
    pool = torch.tensor([long["pool"]], dtype=torch.float64)
    best = {n: float(expected_best(pool, n)) for n in (1, 10, 100, 300)}
    means = {name: _mean(one["hits"]) for name, one in long["steered"].items()}
    mc, pm = means["MC, M = 10"], means["PM, M = 10"]
    verdicts = [
        *(_explains(short, name) for name in ("fitted E[r]", "fitted soft value")),
        _reaches(short),
        Verdict("MC with M = 10 has more hits than best-of-300",
                f"{mc:.2f} and {best[300]:.2f}", mc > best[300]),
        Verdict("PM with M = 10 has more hits than MC (it is optimistic)",
                f"{pm:.2f} and {mc:.2f}", pm > mc),
    ]  # fmt: skip
    rows: list[list[Cell]] = [["plain", with_interval(pool[0], 2), 1, ""]]
    rows += [[f"best of {n}", f"{value:.2f}", n, ""] for n, value in best.items() if n > 1]
    for name, one in long["steered"].items():
        kind, m = name[:2], int(name.rpartition(" ")[2])
        calls = LONG * m if kind == "PM" else m  # MC asks for the reward of complete strings only
        rows.append(
            [name, with_interval(one["hits"], 2), calls, f"{one['distinct']} of {DESIGNED}"]
        )
    columns = ("drawing", "hits (95 % interval)", "reward calls a string", "distinct strings")
    return Finding(
        verdicts,
        [
            *(_exact_table(short, motif) for motif in short),
            Table(f"Design: hits of {MOTIF} in {LONG} letters, alpha 0", columns, rows),
            _tilted_table(long["tilted"], float(pool.mean())),
        ],
        [
            f"A value is fitted to {ROLL_OUTS:,} plain draws and their rewards, once; the calls a "
            "string come on top.",
            "The tilted chain is summed exactly, by the automaton of the motif. The network is not "
            "the chain: without tilt the two differ by what the first table row shows.",
            "A fit to exp((r - max r) / alpha) hardly sees states that never had a high reward "
            "among the roll-outs.",
        ],
        partial(_plot, short),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _explains(short: dict[str, Any], name: str) -> Verdict:
    found = {motif: values[name]["explained"] for motif, values in short.items()}
    return Verdict(
        f"The {name} explains at least {EXPLAINED:.0%} of the variance of the exact one over "
        "states of plain draws",
        ", ".join(f"{motif} {value:.3f}" for motif, value in found.items()),
        min(found.values()) >= EXPLAINED,
    )


def _reaches(short: dict[str, Any]) -> Verdict:
    found = {motif: one["fitted soft value"]["distances"][-1] for motif, one in short.items()}
    return Verdict(
        f"With the fitted soft value the total variation of the reward is at most {LIMIT} at "
        f"M = {COUNTS[-1]}",
        ", ".join(f"{motif} {value:.3f}" for motif, value in found.items()),
        max(found.values()) <= LIMIT,
    )


def _exact_table(short: dict[str, Any], motif: str) -> Table:
    rows: list[list[Cell]] = [
        [name, f"{one['explained']:.3f}", *(f"{value:.3f}" for value in one["distances"])]
        for name, one in short[motif].items()
    ]
    columns = ("value", "variance explained", *(f"M = {m}" for m in COUNTS))
    return Table(f"Exact target, motif {motif}: total variation of the reward", columns, rows)


def _tilted_table(tilted: dict[str, Any], plain: float) -> Table:
    rows: list[list[Cell]] = [
        ["plain: network / chain", f"{plain:.2f} / {tilted_hits(LONG, MOTIF, math.inf):.2f}"],
        ["exact, of the tilted chain", f"{tilted_hits(LONG, MOTIF, TILT):.2f}"],
    ]
    rows += [[name, with_interval(one["hits"], 2)] for name, one in tilted.items()]
    title = f"Mean hits in {LONG} letters at alpha {TILT:g}: the target and what is drawn"
    return Table(title, ("drawing", "hits (95 % interval)"), rows)


def _plot(short: dict[str, Any], axes: Any) -> None:
    for motif, values in short.items():
        for name, one in values.items():
            style = "o-" if "soft" in name else "o--"
            axes.plot(COUNTS, one["distances"], style, label=f"{name}, {motif}")
    axes.axhline(LIMIT, color="grey", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="proposals M",
             ylabel="total variation of the reward")  # fmt: skip
    axes.legend(fontsize=8)


CLAIM = Claim(
    "strings-value",
    "The Monte-Carlo value of strings",
    "SVDD can take the value of a state from a network that is fitted to plain draws of the model "
    "and their rewards. On strings the exact value can be summed: how well does the fit know it, "
    f"does steering by it reach the exact law ({SHORT} letters, alpha {ALPHA}), and how good are "
    f"strings of {LONG} letters that are designed by it, against best-of-n and the posterior mean?",
    measure,
)
