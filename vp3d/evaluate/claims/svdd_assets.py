"""The claim on SVDD and assets: do steered visual prompts make better 3D assets?"""

from __future__ import annotations

from functools import partial
from typing import Any

from vp3d.config.loader import load_config
from vp3d.evaluate import toybench
from vp3d.evaluate.ablation import difference
from vp3d.evaluate.claims.frame import Bench, Cell, Claim, Finding, Table, Verdict
from vp3d.evaluate.runner import Record, Settings, Task, lock_to_settings, run_tasks
from vp3d.evaluate.statistics import statistics

PROMPTS = 12
DRAFT = load_config("draft").visual_prompt
ARMS: dict[str, tuple[str, ...]] = {
    f"plain, best of {DRAFT.candidates}": (),
    "steered, 2 candidates": (
        "visual_prompt.sampler=svdd",
        "visual_prompt.svdd.m=4",
        "visual_prompt.candidates=2",
    ),
}
FIGURES = ("all", "objects", "colors", "r_precision", "iou", "seconds")


def chosen_tasks() -> list[Task]:
    """Every sixth prompt of toybench."""
    return toybench.suite_tasks("all", 1)[::6][:PROMPTS]


def measure_arm(bench: Bench, name: str) -> list[Record]:
    """Generate and judge the assets of one arm; assets that exist are kept."""
    folder = bench.folder / "".join(c if c.isalnum() else "-" for c in name)
    settings = Settings(folder, "draft", (), ARMS[name], "toybox")
    lock_to_settings(settings, {"suite": "claims"}, toybench.JUDGES)
    return run_tasks(chosen_tasks(), settings, toybench.judge_asset, bench.pool)


def measure(bench: Bench) -> Finding:
    """Both arms, then their paired differences."""
    records = {
        name: bench.once(
            f"arm-{number}",
            {"overrides": overrides, "prompts": [task.prompt for task in chosen_tasks()]},
            partial(measure_arm, bench, name),
        )
        for number, (name, overrides) in enumerate(ARMS.items())
    }
    return finding(records)


def finding(records: dict[str, Any]) -> Finding:
    """The table of both arms with the paired differences."""
    base, arm = records.values()
    rows: list[list[Cell]] = []
    answers = {name: difference(arm, base, name) for name in FIGURES}
    for name in FIGURES:
        share = toybench.FIGURES[name].share
        cells = [statistics(found, name, share=share) for found in records.values()]
        means: list[Cell] = [None if cell is None else float(cell["mean"]) for cell in cells]
        rows.append([toybench.FIGURES[name].label, *means, _text(answers[name])])
    answer = answers["all"]
    verdict = Verdict(
        "Steered visual prompts make assets with more attributes right (share of views)",
        _text(answer),
        answer is not None and answer["low"] is not None and answer["low"] > 0.0,
    )
    notes = [
        f"{PROMPTS} prompts of toybench, one seed, preset draft; differences are paired by prompt, "
        "with the 95 % interval of the mean.",
        f"Denoiser calls for the drawing: {DRAFT.candidates} x {DRAFT.steps} against "
        f"2 x (1 + 4 x {DRAFT.steps - 1}) and 16 x {DRAFT.steps} for the scale of the rewards.",
    ]
    columns = ("figure", *records, "difference")
    return Finding([verdict], [Table("Assets", columns, rows)], notes)


def _text(found: dict[str, Any] | None) -> str:
    """A difference with its interval."""
    if found is None:
        return "not measured"
    if found["low"] is None:
        return f"{found['mean']:+.3f}"
    return f"{found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


CLAIM = Claim(
    "svdd-assets",
    "SVDD and the 3D asset",
    "Does a visual prompt that is steered while it is drawn make a better asset than the best of "
    f"{DRAFT.candidates} plain drawings? The reward is that of the product, "
    "`text:1,steady:0.5,whole:0.5`. Toybench's judge is not part of it.",
    measure,
)
