"""The claim on SVDD and framing: the reward of best-of-8 with half of its denoiser calls."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vp3d.align import framing
from vp3d.align.steer import SteeredSampler, Steering, calls_a_row
from vp3d.align.svdd import expected_best
from vp3d.evaluate.claims.frame import (
    Bench,
    Cell,
    Claim,
    Finding,
    Table,
    Verdict,
    signed,
    with_interval,
)
from vp3d.evaluate.claims.svdd import STEPS, Rig, figures_of
from vp3d.prompts import with_view
from vp3d.train.generators import make_generator
from vp3d.worlds.toybox.scenes import Spec, caption, sample_spec

PROMPTS, SEEDS, POOL = 24, 2, 24  # captions, steered pictures and plain draws for each of them
COUNTS = (2, 4)  # M; 4 has about half of the denoiser calls of best-of-8
CAPTIONS_SEED = 28


def hard_specs() -> list[Spec]:
    """Captions that are hard to cut out: white things, rings, and two objects, in equal parts."""
    rng = np.random.default_rng(CAPTIONS_SEED)
    kinds = {
        "white": lambda spec: spec.color == "white" and not spec.noun_b,
        "ring": lambda spec: spec.noun == "ring" and not spec.noun_b,
        "two": lambda spec: bool(spec.noun_b),
    }
    found: dict[str, dict[str, Spec]] = {kind: {} for kind in kinds}
    while min(map(len, found.values())) < PROMPTS // len(kinds):
        spec = sample_spec(rng)
        for kind, fits in kinds.items():
            if fits(spec) and len(found[kind]) < PROMPTS // len(kinds):
                found[kind][caption(spec)] = spec
    return [spec for of_kind in found.values() for spec in of_kind.values()]


def framed(rgb: Tensor, owner: Tensor) -> Tensor:
    """The reward: steady + whole + centred [R], at most 3."""
    return framing.steady(rgb) + framing.whole(rgb) + framing.centred(rgb)


def measure_prompt(rig: Rig, spec: Spec) -> dict[str, Any]:
    """Rewards and side effects of plain and steered drawings of one caption."""
    found: dict[str, Any] = {}
    for name, m, count in (("plain", 1, POOL), *((f"PM {m}", m, SEEDS) for m in COUNTS)):
        prompts = [with_view(caption(spec), "front view")] * count
        sampler = SteeredSampler(rig.prior, lambda prompts: framed, Steering(m, shown=0))
        rgb = sampler.sample(prompts, "", STEPS, 1.0, make_generator(m, prompts[0]))
        rewards = framed(rgb, torch.zeros(count)).tolist()
        figures = figures_of(rig, rgb, spec)
        found[name] = [
            {"reward": reward, "clip": one["clip"], "judge": one["judge"]}
            for reward, one in zip(rewards, figures, strict=True)
        ]
    return found


def measure(bench: Bench) -> Finding:
    """Measure every caption, then compare over captions."""
    rig = Rig.load()
    settings = {"steps": STEPS, "seeds": SEEDS, "pool": POOL, "counts": COUNTS}
    records = [
        bench.once(
            f"prompt-{n:02d}", settings | {"prompt": caption(spec)},
            partial(measure_prompt, rig, spec),
        )
        for n, spec in enumerate(hard_specs())
    ]  # fmt: skip
    return finding(records)


def finding(records: list[dict[str, Any]]) -> Finding:
    """The verdicts and the table."""

    def means(name: str, key: str) -> Tensor:
        return torch.tensor([[one[key] for one in r[name]] for r in records]).double().mean(1)

    pool = torch.tensor([[one["reward"] for one in record["plain"]] for record in records])
    best = {n: expected_best(pool, n) for n in (1, 2, 4, 8, 12)}
    verdicts = []
    for m, n in ((4, 8), (4, 4), (2, 2)):
        gains = means(f"PM {m}", "reward") - best[n]
        calls = f"{calls_a_row(STEPS, m)[0]} against {STEPS * n} denoiser calls"
        verdicts.append(
            Verdict(
                f"PM with M = {m} has at least the reward of best-of-{n} ({calls})",
                signed(gains),
                float(gains.mean()) >= 0.0,
            )  # fmt: skip
        )
    plain = [float(means("plain", key).mean()) for key in ("clip", "judge")]
    rows: list[list[Cell]] = [["plain", with_interval(best[1]), STEPS, 0, *plain]]
    for n in list(best)[1:]:
        rows.append([f"best of {n}", with_interval(best[n]), STEPS * n, n, None, None])
    for m in COUNTS:
        name = f"PM {m}"
        effects = [float(means(name, key).mean()) for key in ("clip", "judge")]
        reward = with_interval(means(name, "reward"))
        rows.append([name, reward, *calls_a_row(STEPS, m), *effects])
    columns = ("drawing", "steady + whole + centred (95 % interval)", "denoiser calls",
               "reward calls", "CLIP", "judge: attributes right")  # fmt: skip
    notes = [
        f"{len(records)} captions: white things, rings and two objects, a third each; {SEEDS} "
        f"seeds; best-of-n from {POOL} draws a caption.",
        "A verdict holds if the mean difference is not negative; its interval is in brackets.",
    ]
    return Finding(verdicts, [Table("All arms", columns, rows)], notes)


CLAIM = Claim(
    "svdd-framing",
    "SVDD on framing",
    "A visual prompt must be cut out, so it should show one object, whole, centred and with a "
    "steady outline. Does SVDD with the posterior mean, M = 4, alpha 0, reach the reward of "
    "best-of-8 with half of its denoiser calls, on captions that are hard to cut out? Embedded "
    f"prior, {STEPS} steps, eta 1, guidance 1.",
    measure,
)
