"""The claim on best-of-N: does choosing among seeds by the reward pay, as another model judges it?

`batch --best-of` and `generate --candidates` choose by the text reward. Here the same choice is
made among seeds that are all judged by toybench, whose judge is another model with other training
data. `SEEDS` seeds of each prompt are made once. The best of a smaller number is the mean over all
choices of that many among them, so each number is measured with all assets, and without bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

from vp3d.build import resolve_device
from vp3d.checks import read_prompts
from vp3d.evaluate import toybench
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
from vp3d.evaluate.runner import Record, Settings, Task, find_mesh, lock_to_settings, run_tasks
from vp3d.jobs.best_of import highest, text_score
from vp3d.rewards.build import load_judges
from vp3d.rewards.text_image import TextImage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EVERY = 5  # every fifth prompt of toybench: five of each set
COUNTS = (1, 2, 4)
SEEDS = max(COUNTS)
FIGURES = ("all", "objects", "colors", "r_precision", "iou")
Seeds = Sequence[Mapping[str, Any]]  # the records of one prompt, a seed each
Choice = Callable[[Seeds], Mapping[str, Any]]


def chosen_tasks() -> list[Task]:
    """The seeds of every fifth prompt of toybench, prompt by prompt."""
    tasks = toybench.suite_tasks("all", SEEDS)
    starts = range(0, len(tasks), EVERY * SEEDS)
    return [task for first in starts for task in tasks[first : first + SEEDS]]


def judge_candidate(settings: Settings, task: Task) -> Record:
    """The record of toybench, with the "score" by which `batch --best-of` chooses."""
    record = toybench.judge_asset(settings, task)
    mesh = find_mesh(settings, task).mesh if record["source"] else None
    if mesh is not None:
        prompt = read_prompts(settings.config(task))[0].prompt  # as the run read it
        record["figures"]["score"] = text_score(mesh, prompt, text_reward(settings))
    return record


@lru_cache(maxsize=1)
def text_reward(settings: Settings) -> TextImage:
    """The text reward of the runs, loaded once a process."""
    config = settings.config()
    device = resolve_device(config.backend)
    return load_judges(config.rewards, config.prior.manifest, device).text


def measure_records(bench: Bench) -> list[Record]:
    """Make, judge and score every seed; those that exist are kept."""
    settings = Settings(bench.folder / "assets", "draft", world="toybox")
    lock_to_settings(settings, {"suite": "claims"}, toybench.JUDGES)
    return run_tasks(chosen_tasks(), settings, judge_candidate, bench.pool)


def measure(bench: Bench) -> Finding:
    """All seeds of all prompts, and what each number of them would have given."""
    tasks = [(task.prompt, task.seed) for task in chosen_tasks()]
    records = bench.once("records", {"tasks": tasks}, partial(measure_records, bench))
    return finding(records)


def by_reward(seeds: Seeds) -> Mapping[str, Any]:
    """What `batch --best-of` takes of these seeds."""
    return highest(seeds) or seeds[0]


def by_judge(seeds: Seeds) -> Mapping[str, Any]:
    """The seed with the most attributes right: no choice can be better by the judge."""
    return max(seeds, key=lambda record: float(record["figures"]["all"]))


def expected(seeds: Seeds, count: int, choose: Choice, name: str) -> float | None:
    """The mean of a figure of the chosen one, over all choices of `count` of the seeds.

    Args:
        seeds: the records of one prompt.
        count: how many seeds there are to choose from.
        choose: takes one of them.
        name: the figure; None if a chosen one does not have it.
    """
    found = [choose(group)["figures"].get(name) for group in combinations(seeds, count)]
    values = [float(value) for value in found if value is not None]
    return sum(values) / len(values) if len(values) == len(found) else None


def seconds_of(seeds: Seeds, count: int) -> float:
    """Seconds that `count` of the seeds take, by the mean of those that were made."""
    made = [float(s) for record in seeds if (s := record["figures"].get("seconds")) is not None]
    return count * sum(made) / len(made) if made else 0.0


def agreement(prompts: Sequence[Seeds]) -> tuple[int, int]:
    """Pairs of seeds of which the reward prefers the one that the judge prefers, and all pairs.

    Pairs that the judge finds equal, and those without a score, are not counted.
    """
    agree = every = 0
    for seeds in prompts:
        for one, two in combinations(seeds, 2):
            judged = float(one["figures"]["all"]) - float(two["figures"]["all"])
            scores = [record["figures"].get("score") for record in (one, two)]
            if judged and None not in scores:
                every += 1
                agree += judged * (float(scores[0]) - float(scores[1])) > 0.0
    return agree, every


def finding(records: Sequence[Record]) -> Finding:
    """The verdicts and tables of records that are sorted by prompt, `SEEDS` each."""
    prompts = [records[first : first + SEEDS] for first in range(0, len(records), SEEDS)]
    chosen = {n: [_all(seeds, n, by_reward) for seeds in prompts] for n in COUNTS}
    ceiling = {n: [_all(seeds, n, by_judge) for seeds in prompts] for n in COUNTS}
    gains = {n: _minus(chosen[n], chosen[1]) for n in COUNTS[1:]}
    verdicts = [
        Verdict(
            f"The best of {n} seeds by the text reward has more attributes right than one seed "
            "(share of views, interval above 0)",
            with_interval(gains[n]),
            interval(gains[n])[1] > 0.0,
        )
        for n in COUNTS[1:]
    ]
    agree, every = agreement(prompts)
    equal = sum(len({record["figures"]["all"] for record in seeds}) == 1 for seeds in prompts)
    possible = _minus(ceiling[SEEDS], chosen[1])
    most = f"The gain if the judge itself chose among {SEEDS} seeds, which no reward can exceed"
    pairs = "Pairs of seeds of which the reward prefers the one that the judge prefers"
    verdicts += [
        Verdict(most, with_interval(possible), None),
        Verdict(pairs, f"{agree} of {every}", None),
    ]
    tables = [_table_of_counts(prompts, chosen, ceiling), _table_of_figures(prompts),
              _table_of_prompts(prompts)]  # fmt: skip
    notes = [
        f"{len(prompts)} prompts of toybench, {SEEDS} seeds each, preset draft; gains are paired "
        "by prompt, with the 95 % interval of the mean.",
        f"All {SEEDS} seeds are judged equal on {equal} of {len(prompts)} prompts, where no choice "
        "matters. Failures count 0.",
        "The reward is the one that the runs were optimised with. Neither the judge nor the CLIP "
        "of R-precision is part of it.",
        "Seconds are those of the runs, as the machine was then; compare them within this page.",
    ]
    return Finding(verdicts, tables, notes, partial(_plot, chosen, ceiling))


def _all(seeds: Seeds, count: int, choose: Choice) -> float:
    """Attributes right of what is chosen; a failure has 0, so every record has the figure."""
    return expected(seeds, count, choose, "all") or 0.0


def _minus(values: Sequence[float], base: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(values, base, strict=True)]


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def _table_of_counts(
    prompts: Sequence[Seeds],
    chosen: Mapping[int, Sequence[float]],
    ceiling: Mapping[int, Sequence[float]],
) -> Table:
    """Gain and cost by the number of seeds."""
    rows: list[list[Cell]] = []
    for n in COUNTS:
        gain = "" if n == 1 else with_interval(_minus(chosen[n], chosen[1]))
        seconds = _mean([seconds_of(seeds, n) for seeds in prompts])
        rows.append([n, with_interval(chosen[n]), gain, _mean(ceiling[n]), seconds])
    columns = ("seeds", "all attributes", "gain", "if the judge chose", "seconds an asset")
    return Table("Gain and cost", columns, rows)


def _table_of_figures(prompts: Sequence[Seeds]) -> Table:
    """The other figures of what the reward chooses."""
    rows: list[list[Cell]] = [
        [toybench.FIGURES[name].label,
         *(_mean([expected(seeds, n, by_reward, name) for seeds in prompts]) for n in COUNTS)]
        for name in FIGURES
    ]  # fmt: skip
    columns = ("figure", *(f"best of {n}" if n > 1 else "one seed" for n in COUNTS))
    return Table("Other figures of what the reward chooses", columns, rows)


def _table_of_prompts(prompts: Sequence[Seeds]) -> Table:
    """All attributes, prompt by prompt."""
    rows: list[list[Cell]] = [
        [str(seeds[0]["prompt"]), _all(seeds, 1, by_reward), _all(seeds, SEEDS, by_reward),
         _all(seeds, SEEDS, by_judge)]
        for seeds in prompts
    ]  # fmt: skip
    columns = ("prompt", "one seed", f"best of {SEEDS}", "if the judge chose")
    return Table("All attributes by prompt", columns, rows)


def _plot(
    chosen: Mapping[int, Sequence[float]], ceiling: Mapping[int, Sequence[float]], axes: Axes
) -> None:
    """Attributes right by the number of seeds."""
    for values, label in ((ceiling, "chosen by the judge"), (chosen, "chosen by the reward")):
        means = [sum(values[n]) / len(values[n]) for n in COUNTS]
        axes.plot(COUNTS, means, marker="o", label=label)
    axes.set_xlabel("seeds to choose from")
    axes.set_ylabel("all attributes, share of views")
    axes.set_xticks(COUNTS)
    axes.legend()


CLAIM = Claim(
    "best-of",
    "Does the best of several seeds pay?",
    f"`batch --best-of N` and `generate --candidates N` make N seeds and take the one with the "
    f"highest text reward. {SEEDS} seeds of every fifth prompt of toybench are made by the preset "
    "draft and judged by toybench, whose judge is another model. Smaller N are the mean over all "
    "choices of N seeds among them. What is gained, and what does it cost?",
    measure,
    page="batch",
)
