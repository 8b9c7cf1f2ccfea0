"""Mixing two LoRAs by their scales trades one reward for the other."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vp3d.align.compress import rate
from vp3d.config.schema import AlignConfig
from vp3d.diffusion.lora import attach, set_scales
from vp3d.diffusion.sampling import sample
from vp3d.evaluate.claims.alignprop_lab import captions, match, prompts_of, start
from vp3d.evaluate.claims.frame import Bench, Claim, Finding, Table, Verdict
from vp3d.train.generators import make_generator
from vp3d.tuning.rewards import WITH_GRADIENT

import torch  # isort: skip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUERIES = 640
MIXES = (0.0, 0.25, 0.5, 0.75, 1.0)  # scale of the second LoRA; the first has the rest
MIDPOINT = 0.4  # share of each gain that the midpoint keeps
REWARDS = ("compress:1,clip:1", "colorful:1,clip:1")


def config_of(reward: str) -> AlignConfig:
    """How each of the two LoRAs is trained."""
    return AlignConfig(reward=reward, lr=3e-3, guard_every=5)


def train(reward: str) -> dict[str, Any]:
    """The matrices of a LoRA, the best by the guard."""
    training = start(config_of(reward), 0)
    training.check()
    while training.queries < QUERIES:
        training.step()
        if training.step_number % 5 == 0 and training.check():
            break
    return {key: value.tolist() for key, value in training.best.items()}


def mix(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """Both rewards of drawings of unseen captions at each mix, and of the base."""
    training = start(config_of(REWARDS[0]), 0)
    networks = {"unet": training.prior.unet}
    other = attach(networks, "second", training.config.rank, make_generator(0, "second"))
    with torch.no_grad():
        for matrices, values in ((training.parameters, first), (other, second)):
            for key, value in matrices.items():
                value.copy_(torch.tensor(values[key]))
    names = list(prompts_of(captions()["unseen"]))
    noise = training.prior.noise(len(names), make_generator(99, "mix"))
    rows = []
    for scales in [None, *MIXES]:
        pair = {} if scales is None else {"align": 1.0 - scales, "second": scales}
        set_scales(networks, pair)
        with torch.no_grad():
            drawing = training.prior.drawing(names, "", training.config.steps, 1.0)
            rgb = training.prior.decode(sample(drawing, noise, drawing.levels))
        cosine, nearest = match(rgb, names)
        found = {"cosine": float(cosine.mean()), "nearest": float(nearest.mean())}
        rows.append({"mix": scales, **_rewards(rgb), **found})
    return rows


def _rewards(rgb: Tensor) -> dict[str, float]:
    colorful = WITH_GRADIENT["colorful"](rgb, [])
    return {"compress": -float(rate(rgb).mean()), "colorful": float(colorful.mean())}


def measure(bench: Bench) -> Finding:
    """Measure the claim."""
    loras = bench.every(
        [
            (
                f"lora-{i}",
                {"config": config_of(reward), "queries": QUERIES, "version": 3},
                partial(train, reward),
            )
            for i, reward in enumerate(REWARDS)
        ]
    )
    settings = {"mixes": MIXES, "rewards": REWARDS, "queries": QUERIES, "version": 3}
    rows = bench.once("mixes", settings, lambda: mix(*loras))
    base, mixes = rows[0], rows[1:]
    compress = [row["compress"] for row in mixes]
    colorful = [row["colorful"] for row in mixes]
    monotone = compress == sorted(compress, reverse=True) and colorful == sorted(colorful)
    middle = mixes[len(mixes) // 2]
    gains = {"compress": mixes[0], "colorful": mixes[-1]}
    kept = {
        name: (middle[name] - base[name]) / (best[name] - base[name])
        if best[name] > base[name]
        else float("nan")
        for name, best in gains.items()
    }
    ends = "; ".join(
        f"{name} {mixes[0][name]:.3g} to {mixes[-1][name]:.3g}" for name in ("compress", "colorful")
    )
    verdicts = [
        Verdict("both rewards are monotone over the mixes", ends, monotone),
        Verdict(
            "the midpoint keeps >= 40 % of each gain",
            ", ".join(f"{name} {share:.0%}" for name, share in kept.items()),
            all(share >= MIDPOINT for share in kept.values()),
        ),
    ]
    figures = ("compress", "colorful", "cosine", "nearest")
    table = [("base" if row["mix"] is None else row["mix"], *(row[key] for key in figures))
             for row in rows]  # fmt: skip

    def plot(axes: Axes) -> None:
        axes.plot(compress, colorful, "o-", label="mixes")
        axes.plot(base["compress"], base["colorful"], "s", label="base")
        axes.set_xlabel("compress")
        axes.set_ylabel("colorful")
        axes.legend()

    notes = [
        "One seed, 32 captions.",
        "cosine and nearest: with the own caption, and whether that is the nearest, by the CLIP "
        "that is never optimised. It is also the guard's held-out score.",
    ]
    columns = ("scale of the second LoRA", *figures)
    return Finding(verdicts, [Table("Mixes", columns, table)], notes, plot)


CLAIM = Claim(
    "alignprop-mix",
    "Two LoRAs mix by their scales",
    f"One LoRA is trained on `{REWARDS[0]}`, one on `{REWARDS[1]}`. Both are attached with scales "
    "that add up to 1, and 32 reserved captions are drawn.",
    measure,
)
