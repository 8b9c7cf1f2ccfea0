"""What `launch.py evaluate` does: tasks, results, then table, `summary.json` and `index.html`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vp3d.errors import UserError
from vp3d.evaluate import t3bench, toybench
from vp3d.evaluate.html import PARTS, write_page
from vp3d.evaluate.results_folder import in_repository
from vp3d.evaluate.runner import Record, Settings, Task, lock_to_settings, run_tasks
from vp3d.evaluate.statistics import (
    WHOLE,
    Figure,
    circumstances,
    failures_line,
    legend,
    rows_of,
    summarise,
    text_table,
)
from vp3d.system.files import write_json

SCORED = ("rewards.", "prior.manifest", "backend")  # settings that T3Bench's scorers read


def idle(settings: Settings, seeds: int) -> dict[str, bool]:
    """Options that only runs read -> whether they were given."""
    return {"--preset": settings.preset != Settings.preset, "--seeds": seeds != 1}


def refuse_idle(given: Mapping[str, bool]) -> None:
    """UserError for an option or key=value that changes nothing where the assets are there already."""
    first = next((name for name, is_given in given.items() if is_given), None)
    if first is not None:
        raise UserError(
            f"{first} changes nothing with --assets, where nothing is made; leave it out"
        )


def evaluate_toybench(
    settings: Settings, assets: Path | None, subset: str, seeds: int, jobs: int
) -> str:
    """Make (or take from `assets`) and judge; returns the printed tables."""
    if assets is not None:
        asked = idle(settings, seeds) | {
            "--subset": subset != "all",
            "--config": bool(settings.files),
        }
        refuse_idle(asked | dict.fromkeys(settings.overrides, True))
    tasks = toybench.suite_tasks(subset, seeds) if assets is None else toybench.folder_tasks(assets)
    lock_to_settings(
        settings,
        {"suite": "toybench", "assets": str(assets.absolute()) if assets else None},
        toybench.JUDGES,
    )
    records = run_tasks(tasks, settings, toybench.judge_asset, jobs)
    name = f"Toybench, {'mini' if subset == 'mini' and assets is None else assets or 'all'}"
    return finish(name, tasks, records, settings, toybench.FIGURES, tuple(PARTS))


def evaluate_t3bench(
    settings: Settings,
    assets: Path | None,
    prompts: Sequence[Path],
    protocol: t3bench.Protocol,
    seeds: int,
    jobs: int,
) -> str:
    """The same by T3Bench's protocol."""
    if assets is not None:
        unread = [word for word in settings.overrides if not word.startswith(SCORED)]
        refuse_idle(
            idle(settings, seeds) | {"--prompts": bool(prompts)} | dict.fromkeys(unread, True)
        )
    if protocol.grader != "endpoint" and (protocol.endpoint or protocol.endpoint_model):
        raise UserError(
            "--endpoint and --endpoint-model change nothing without --grader endpoint; add it, or leave them out"
        )
    tasks = t3bench.prompt_tasks(prompts, seeds) if assets is None else t3bench.folder_tasks(assets)
    t3bench.check_protocol(protocol, tasks, settings)
    suite = {
        "suite": "t3bench",
        "protocol": protocol,
        "assets": str(assets.absolute()) if assets else None,
    }
    lock_to_settings(settings, suite, t3bench.locations_of(protocol, settings.config()))
    records = run_tasks(tasks, settings, t3bench.judge_with(protocol), jobs)
    return finish(
        f"T3Bench's protocol, {protocol.scorer}",
        tasks,
        records,
        settings,
        t3bench.FIGURES,
        ("figures",),
    )


def finish(
    title: str, tasks: Sequence[Task], records: Sequence[Record], settings: Settings, figures: Mapping[str, Figure],
    parts: tuple[str, ...],
) -> str:  # fmt: skip
    """Write `summary.json` and `index.html` into the folder; returns the tables as text."""
    summary: dict[str, Any] = summarise(records, figures, parts)
    about = circumstances()
    facts = facts_of(tasks, records, settings, about)
    write_json(
        settings.folder / "summary.json", {"title": title, "facts": facts, "about": about} | summary
    )
    write_page(
        settings.folder / "index.html",
        title,
        facts,
        summary,
        figures,
        list(zip(tasks, records, strict=True)),
        settings,
    )
    tables = [
        text_table(*rows_of(summary[part], figures), PARTS[part])
        for part in parts
        if summary[part][WHOLE]
    ]
    head = f"{title}: " + ", ".join(f"{name} {value}" for name, value in facts.items())
    explained = legend(figures, summary["figures"][WHOLE], "95 % interval of the mean over prompts")
    return "\n".join(
        [
            head,
            "",
            *tables,
            f"{explained}; {failures_line(summary)}",
            str(settings.folder / "index.html"),
            "",
        ]
    )


def facts_of(
    tasks: Sequence[Task], records: Sequence[Record], settings: Settings, about: Mapping[str, Any]
) -> dict[str, str]:
    """What stands above the tables: how the assets were made (nothing where they were there), when, from which commits, where."""
    seeds = max(Counter((task.group, task.prompt) for task in tasks).values())
    facts = (
        {"preset": settings.preset, "seeds": str(seeds)}
        if any(not task.source for task in tasks)
        else {}
    )
    facts |= {"config": ", ".join(map(in_repository, settings.files))} if settings.files else {}
    facts |= {"settings": " ".join(settings.overrides)} if settings.overrides else {}
    dates = sorted(record["date"] for record in records)
    commits = dict.fromkeys(_commit(record["git"] or {}) for record in records)
    return facts | {
        "date": " to ".join(dict.fromkeys((dates[0], dates[-1]))),
        "commit": ", ".join(commits),
        "machine": str(about["machine"]),
    }


def _commit(git: Mapping[str, Any]) -> str:
    return f"{str(git.get('commit', 'none'))[:10]}{' with changes' if git.get('dirty') else ''}"
