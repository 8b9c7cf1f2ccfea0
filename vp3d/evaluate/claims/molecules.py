"""The claim on molecules: SVDD by QED against best-of-n, on strings of SELFIES."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vp3d.align.svdd import svdd
from vp3d.align.tokens import (
    Strings,
    TokenModel,
    draw_strings,
    posterior_mean,
    propose_tokens,
    train_tokens,
)
from vp3d.evaluate.claims.frame import (
    Bench,
    Cell,
    Claim,
    Finding,
    Table,
    above,
    with_interval,
)
from vp3d.train.generators import make_generator
from vp3d.worlds.molecules import (
    LENGTH,
    TOKENS,
    canonical,
    draw_molecules,
    drug_likeness,
    to_smiles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAINING, UPDATES = 20_000, 3_000  # molecules of the grammar, updates of the base model
DRAWN, N, M = 100, 10, 10  # molecules of each arm, n of best-of-n, proposals
EQUAL = M * LENGTH  # n of best-of-n at as many reward calls as SVDD has
SHOWN = 3


def trained() -> TokenModel:
    """The base model, from named generators."""
    molecules = draw_molecules(TRAINING, make_generator(0, "molecules"))

    def batch(count: int, generator: torch.Generator) -> Tensor:
        return molecules[torch.randint(len(molecules), (count,), generator=generator)]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TokenModel(len(TOKENS), LENGTH)
    train_tokens(model, batch, UPDATES, make_generator(0, "molecules fit"))
    return model


def best_of(model: TokenModel, n: int) -> Tensor:
    """The best by QED of each of `DRAWN` groups of n plain strings [DRAWN, LENGTH]."""
    x = draw_strings(model, DRAWN * n, make_generator(n, "best of")).view(DRAWN, n, LENGTH)
    best = drug_likeness(x.flatten(0, 1)).view(DRAWN, n).argmax(1)
    return x[torch.arange(DRAWN), best]


def by_svdd(model: TokenModel) -> Tensor:
    """`DRAWN` strings [DRAWN, LENGTH] by the posterior mean, alpha 0."""
    start = Strings.start(model, DRAWN)
    value = posterior_mean(drug_likeness)
    generator = make_generator(M, "molecules svdd")
    return svdd(start, LENGTH, propose_tokens, value, M, 0.0, generator).x


def described(x: Tensor) -> dict[str, Any]:
    """QED of each molecule, the different ones among them, and the best as SMILES."""
    qed = drug_likeness(x)
    order = qed.argsort(descending=True)[:SHOWN]
    return {
        "qed": qed.tolist(),
        "distinct": len(set(canonical(x))),
        "atoms": float((qed > 0.0).double().mean()),
        "best": to_smiles(x[order]),
    }


def measure_arms() -> dict[str, Any]:
    """All arms, with one base model."""
    model = trained()
    arms = {
        "base": best_of(model, 1),
        f"best of {N}": best_of(model, N),
        f"best of {EQUAL}": best_of(model, EQUAL),
        f"SVDD-PM, M = {M}": by_svdd(model),
    }
    grammar = described(draw_molecules(DRAWN, make_generator(1, "grammar")))
    return {"grammar": grammar, **{name: described(x) for name, x in arms.items()}}


def measure(bench: Bench) -> Finding:
    """One part: training and all arms."""
    settings = {"molecules": TRAINING, "updates": UPDATES, "drawn": DRAWN, "n": N, "m": M}
    return finding(bench.once("arms", settings, measure_arms))


def finding(arms: dict[str, Any]) -> Finding:
    """The verdicts and the table."""
    qed = {name: torch.tensor(arm["qed"], dtype=torch.float64) for name, arm in arms.items()}
    steered = qed[f"SVDD-PM, M = {M}"]
    verdicts = [
        above(f"SVDD-PM with M = {M} has a higher QED than best-of-{n}{why}",
               steered - qed[f"best of {n}"])
        for n, why in ((N, ""), (EQUAL, " (equal reward calls)"))
    ]  # fmt: skip
    calls = {"base": 0, f"best of {N}": N, f"best of {EQUAL}": EQUAL}
    rows: list[list[Cell]] = [
        [
            name,
            with_interval(qed[name]),
            None if name == "grammar" else calls.get(name, EQUAL),
            f"{arm['atoms']:.0%}",
            f"{arm['distinct']} of {DRAWN}",
            arm["best"][0],
        ]
        for name, arm in arms.items()
    ]
    columns = ("molecules", "QED (95 % interval)", "reward calls each", "with atoms", "distinct",
               "the best as SMILES")  # fmt: skip
    notes = [
        "The base model is trained on molecules of a hand-written grammar of rings, linkers and "
        "groups; it is no model of drugs, and QED says nothing of whether a molecule can be made.",
        f"SELFIES strings of {LENGTH} tokens; every string is a molecule, so none is invalid.",
        "The differences are between independent draws.",
    ]
    return Finding(verdicts, [Table("Molecules", columns, rows)], notes, partial(_plot, qed))


def _plot(qed: dict[str, Tensor], axes: Axes) -> None:
    names: Sequence[str] = list(qed)
    axes.boxplot([qed[name].tolist() for name in names])
    axes.set_xticks(range(1, len(names) + 1), names)
    axes.set_ylabel("QED")


CLAIM = Claim(
    "molecules",
    "SVDD on molecules",
    "Does SVDD find molecules with a higher QED (drug-likeness, by RDKit) than the best of n plain "
    "ones? The base model is a masked diffusion model on SELFIES strings; the value is the "
    f"posterior mean, M = {M}, alpha 0.",
    measure,
)
