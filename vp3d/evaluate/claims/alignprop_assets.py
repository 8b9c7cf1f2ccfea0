"""Whether a LoRA for few drawing steps makes `generate` faster or better."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vp3d import pipeline
from vp3d.config.loader import load_config
from vp3d.config.schema import AlignConfig
from vp3d.diffusion.lora import save_lora
from vp3d.errors import ResourceError, VP3DError
from vp3d.evaluate import toybench
from vp3d.evaluate.claims.alignprop_lab import start
from vp3d.evaluate.claims.frame import (
    Bench,
    Cell,
    Claim,
    Finding,
    Table,
    Verdict,
    interval,
    with_interval,
)
from vp3d.evaluate.runner import (
    FoundAsset,
    Record,
    Settings,
    Task,
    lock_to_settings,
    run_tasks,
)
from vp3d.jobs.make_once import found_runs
from vp3d.system.files import sha256_file
from vp3d.worlds.toybox.scenes import parse_caption

FEW = 4  # drawing steps with the LoRA
DRAFT = load_config("draft").visual_prompt
QUERIES = 480
CONFIG = AlignConfig(
    reward="clip:1,framing:0.5",
    lr=3e-3,
    steps=FEW,
    guidance_scale=DRAFT.guidance_scale,
    k=f"uniform:{FEW}",
    updates=QUERIES // 8,
)
TODAY, PLAIN, ALIGNED = f"{DRAFT.steps} steps, today", f"{FEW} steps", f"{FEW} steps and the LoRA"
FIGURES = ("all", "objects", "colors", "r_precision", "iou", "seconds")
Read = Callable[[Record], float | None]


def train() -> dict[str, Any]:
    """The matrices of the LoRA, the best by the guard, and what they cost."""
    training = start(CONFIG, 0)
    began, stopped = time.process_time(), training.check()
    while training.queries < QUERIES and not stopped:
        training.step()
        if training.step_number % CONFIG.guard_every == 0:
            stopped = training.check()
    return {
        "lora": {key: value.tolist() for key, value in training.best.items()},
        "seconds": round(time.process_time() - began, 1),
        "queries": training.queries,
        "stopped": stopped,
    }


def write_lora(trained: dict[str, Any], folder: Path) -> Path:
    """The LoRA as a file of diffusers' format, named by its contents, so that it is written once.

    Assets are kept for the bytes of the file that drew them; an equal LoRA could have others.
    """
    digest = hashlib.sha256(json.dumps(trained["lora"], sort_keys=True).encode()).hexdigest()
    path = folder / f"lora-{digest[:12]}.safetensors"
    if not path.is_file():
        tensors = {key: torch.tensor(value) for key, value in trained["lora"].items()}
        save_lora(path, tensors, {"reward": CONFIG.reward, "queries": trained["queries"]})
    return path


def arms(lora: Path) -> dict[str, tuple[str, ...]]:
    """The settings of each arm, over those of the preset draft.

    The LoRA draws and does not distil, as with `--lora-for draw`.
    """
    prior = load_config("draft").prior
    copied = ("path", "ip_adapter", "manifest", "vocabulary")
    few = f"visual_prompt.steps={FEW}"
    draws = tuple(f"visual_prompt.prior.{key}={getattr(prior, key)}" for key in copied)
    return {
        TODAY: (),
        PLAIN: (few,),
        ALIGNED: (few, *draws, f"visual_prompt.prior.loras={lora.absolute()}"),
    }


def judge_drawing(settings: Settings, task: Task) -> Record:
    """Draw the visual prompt of a task, and judge it; no asset is made.

    Returns:
        A record whose "drawn" is that of toybench, and whose only figure is "seconds".
    """
    began, work, failure = time.perf_counter(), settings.runs(task), ""
    config = settings.config(task)
    config.output_dir = str(work)
    try:
        pipeline.draw(config)
    except ResourceError:
        raise
    except VP3DError as error:
        failure = str(error)
    seconds = time.perf_counter() - began
    runs = found_runs(work)
    found = FoundAsset(None, folder=runs[-1].path if runs else None)
    return {
        "set": task.group,
        "prompt": task.prompt,
        "seed": task.seed,
        "failure": "no picture" if failure else "",
        "reason": failure,
        "figures": {"seconds": seconds},
        "drawn": None if failure else toybench.drawn(found, parse_caption(task.prompt)),
    }


def measure_arm(
    bench: Bench, name: str, overrides: tuple[str, ...], kind: str, number: int
) -> list[Record]:
    """The records of one arm, of `kind` "assets" or "drawings"; those that exist are kept."""
    settings = Settings(bench.folder / f"{kind}-{number}", "draft", (), overrides, "toybox")
    lock_to_settings(settings, {"suite": f"claims {kind}"}, toybench.JUDGES)
    judge = toybench.judge_asset if kind == "assets" else judge_drawing
    bench.say(f"{kind}: {name}")
    return run_tasks(toybench.suite_tasks("mini", 1), settings, judge, bench.pool)


def measure(bench: Bench) -> Finding:
    """Train the LoRA, draw with every arm, and make assets with two of them."""
    trained = bench.once("lora", {"config": CONFIG, "queries": QUERIES, "version": 2}, train)
    lora = write_lora(trained, bench.folder)
    records: dict[tuple[str, str], list[Record]] = {}
    for number, (name, overrides) in enumerate(arms(lora).items()):
        for kind in ("drawings", "assets"):
            if (kind, name) == ("assets", PLAIN):
                continue  # the drawings say what the LoRA adds
            settings = {"overrides": overrides, "kind": kind, "lora": sha256_file(lora)}
            compute = partial(measure_arm, bench, name, overrides, kind, number)
            records[kind, name] = bench.once(f"{kind}-{number}", settings, compute)
    return finding(trained, records)


def figure(name: str) -> Read:
    """Reads a figure of the asset."""
    return lambda record: record["figures"].get(name)


def right(record: Record) -> float:
    """Whether the judge finds all attributes in the visual prompt; 0 without a picture."""
    return float((record["drawn"] or {}).get("all") or 0.0)


def paired(arm: Sequence[Record], base: Sequence[Record], read: Read) -> list[float]:
    """Arm minus base by prompt, of the prompts that have the figure in both."""
    pairs = [(read(a), read(b)) for a, b in zip(arm, base, strict=True)]
    return [a - b for a, b in pairs if a is not None and b is not None]


def difference(values: Sequence[float], digits: int = 3) -> str:
    """A mean difference with its interval as text."""
    return with_interval(values, digits) if len(values) > 1 else "not measured"


def bound(values: Sequence[float], which: int) -> float:
    """Mean (0), low (1) or high (2) of differences; NaN for fewer than two, so no claim holds."""
    return interval(values)[which] if len(values) > 1 else math.nan


def mean_of(records: Sequence[Record], read: Read) -> float | None:
    """The mean over prompts; None if no record has the figure."""
    found = [value for record in records if (value := read(record)) is not None]
    return sum(found) / len(found) if found else None


def finding(trained: dict[str, Any], records: dict[tuple[str, str], list[Record]]) -> Finding:
    """The verdicts and tables."""
    today, aligned = (records["assets", name] for name in (TODAY, ALIGNED))
    drawn = {name: records["drawings", name] for name in (TODAY, PLAIN, ALIGNED)}
    quality, faster = (paired(aligned, today, figure(name)) for name in ("all", "seconds"))
    against_today = paired(drawn[ALIGNED], drawn[TODAY], right)
    against_plain = paired(drawn[ALIGNED], drawn[PLAIN], right)
    verdicts = [
        Verdict(
            "assets have at least as many attributes right as today's (mean difference >= 0)",
            difference(quality),
            bound(quality, 0) >= 0.0,
        ),
        Verdict("assets have more attributes right (interval above 0)",
                difference(quality), bound(quality, 1) > 0.0),
        Verdict("`generate` takes fewer seconds (interval below 0)",
                difference(faster, 1), bound(faster, 2) < 0.0),
        Verdict("visual prompts are right at least as often as today's (mean difference >= 0)",
                difference(against_today), bound(against_today, 0) >= 0.0),
        Verdict(f"the LoRA makes visual prompts of {FEW} steps right more often "
                "(interval above 0)", difference(against_plain), bound(against_plain, 1) > 0.0),
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for name in FIGURES:
        read = figure(name)
        change = difference(paired(aligned, today, read))
        label = toybench.FIGURES[name].label
        rows.append([label, mean_of(today, read), mean_of(aligned, read), change])
    drawings: list[list[Cell]] = [
        [name, mean_of(found, right), mean_of(found, figure("seconds"))]
        for name, found in drawn.items()
    ]
    tables = [
        Table("Assets", ("figure", TODAY, ALIGNED, "difference (95 % interval)"), rows),
        Table("Visual prompts alone", ("drawing", "right", "seconds, models included"), drawings),
    ]
    notes = [
        f"{len(today)} prompts of toybench (mini), one seed, preset draft with "
        f"{DRAFT.candidates} drawings each; differences are paired by prompt.",
        f"The LoRA took {trained['queries']} reward queries on captions that are not in toybench, "
        f"{trained['seconds']:.0f} CPU seconds. {trained['stopped'] or 'The guard let it finish'}.",
        "It draws and does not distil (`--lora-for draw`), so a run loads two models.",
        "Seconds are of one machine that also did other work; compare them within this page only.",
    ]
    return Finding(verdicts, tables, notes)


CLAIM = Claim(
    "alignprop-assets",
    "Does a LoRA for few drawing steps make `generate` faster or better?",
    f"A LoRA is aligned by AlignProp to `{CONFIG.reward}` at {FEW} denoising steps and the "
    f"product's guidance. Assets of the preset draft from visual prompts in {FEW} steps with it "
    f"are compared with those of today, {DRAFT.steps} steps: attributes right by toybench's judge, "
    "and seconds. Drawings without the LoRA say what it adds.",
    measure,
)
