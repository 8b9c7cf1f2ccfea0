"""What `launch.py evaluate` does: tasks -> records -> tables, `summary.json` and `index.html`.

There is one function for each suite. All of them run their tasks by `runner.run_tasks` and end with
`finish`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vp3d.engine.pool import Pool
from vp3d.errors import UserError
from vp3d.evaluate import gallery, household, stylised, t3bench, toybench
from vp3d.evaluate.html import PARTS, write_page
from vp3d.evaluate.prompt_tasks import adopt_former
from vp3d.evaluate.results_folder import relative_to_repository
from vp3d.evaluate.runner import Record, Settings, Task, lock_to_settings, run_tasks
from vp3d.evaluate.statistics import (
    ALL_SETS,
    Figure,
    circumstances,
    failures_line,
    legend,
    provenance_of,
    rows_of,
    summarise,
    text_table,
)
from vp3d.system.files import write_json

SCORER_SETTINGS = ("rewards.", "prior.manifest", "backend")  # settings that T3Bench's scorers read
INTERVAL = "95 % interval of the mean over prompts"


def run_options(settings: Settings, seeds: int) -> dict[str, bool]:
    """Option -> whether it was given, for the options that only runs read."""
    return {"--preset": settings.preset != Settings.preset, "--seeds": seeds != 1}


def refuse_unused(given: Mapping[str, bool]) -> None:
    """Refuses options that change nothing because no asset is generated.

    Args:
        given: option or key=value word -> whether it was given.

    Raises:
        UserError: the first one that was given.
    """
    first = next((name for name, is_given in given.items() if is_given), None)
    if first is not None:
        raise UserError(
            f"{first} changes nothing with --assets, because no asset is generated; leave it out"
        )


def evaluate_toybench(
    settings: Settings, assets: Path | None, subset: str, seeds: int, pool: Pool
) -> str:
    """Runs toybench.

    Args:
        settings: how assets are generated, and the folder of results.
        assets: a folder of meshes or runs to judge; None to generate the assets.
        subset: "all" or "mini".
        seeds: seeds for each prompt.
        pool: what runs the tasks.

    Returns:
        The tables as text.

    Raises:
        UserError: an option changes nothing, or `lock_to_settings` or `run_tasks` refuses.
    """
    if assets is not None:
        given = run_options(settings, seeds)
        given |= {"--subset": subset != "all", "--config": bool(settings.files)}
        refuse_unused(given | dict.fromkeys(settings.overrides, True))
    tasks = toybench.suite_tasks(subset, seeds) if assets is None else toybench.folder_tasks(assets)
    suite = {"suite": "toybench", "assets": str(assets.absolute()) if assets else None}
    lock_to_settings(settings, suite, toybench.JUDGES)
    records = run_tasks(tasks, settings, toybench.judge_asset, pool)
    name = f"Toybench, {'mini' if subset == 'mini' and assets is None else assets or 'all'}"
    return finish(name, tasks, records, settings, toybench.FIGURES, tuple(PARTS))


def evaluate_t3bench(
    settings: Settings,
    assets: Path | None,
    prompts: Sequence[Path],
    protocol: t3bench.Protocol,
    seeds: int,
    pool: Pool,
) -> str:
    """Runs T3Bench's protocol.

    Args:
        settings: how assets are generated, and the folder of results.
        assets: a folder of meshes or runs to judge; None to generate the assets.
        prompts: prompt files, if assets are generated.
        protocol: scorer and grader.
        seeds: seeds for each prompt.
        pool: what runs the tasks.

    Returns:
        The tables as text.

    Raises:
        UserError: an option changes nothing, or `lock_to_settings` or `run_tasks` refuses.
    """
    if assets is not None:
        unread = [word for word in settings.overrides if not word.startswith(SCORER_SETTINGS)]
        given = run_options(settings, seeds) | {"--prompts": bool(prompts)}
        refuse_unused(given | dict.fromkeys(unread, True))
    if protocol.grader != "endpoint" and (protocol.endpoint or protocol.endpoint_model):
        raise UserError(
            "--endpoint and --endpoint-model change nothing without --grader endpoint; "
            "add it, or leave them out"
        )
    tasks = t3bench.prompt_tasks(prompts, seeds) if assets is None else t3bench.folder_tasks(assets)
    t3bench.check_protocol(protocol, tasks, settings)
    suite = {
        "suite": "t3bench",
        "protocol": protocol,
        "assets": str(assets.absolute()) if assets else None,
    }
    config = settings.config()
    judges = t3bench.weight_sources(protocol, config.rewards, config.prior.manifest)
    lock_to_settings(settings, suite, judges)
    adopt_former(settings, tasks)
    records = run_tasks(tasks, settings, t3bench.judge_with(protocol), pool)
    title = f"T3Bench's protocol, {protocol.scorer}"
    return finish(title, tasks, records, settings, t3bench.FIGURES, ("figures",))


def evaluate_gallery(
    settings: Settings, prompts: Sequence[Path], every: int, seeds: int, pool: Pool
) -> str:
    """Runs the gallery suite; writes `gallery.csv` and the contact sheet `gallery.png` as well.

    Args:
        settings: how assets are generated, and the folder of results.
        prompts: prompt files of toybox captions; the suite's own if there are none.
        every: take every n-th prompt.
        seeds: seeds for each prompt.
        pool: what runs the tasks.

    Returns:
        The tables as text.

    Raises:
        UserError: a prompt is not a caption, or `lock_to_settings` or `run_tasks` refuses.
    """
    tasks = gallery.suite_tasks(prompts, every, seeds)
    lock_to_settings(settings, {"suite": "gallery"}, gallery.JUDGES)
    adopt_former(settings, tasks)
    records = run_tasks(tasks, settings, gallery.judge_asset, pool)
    gallery.write_csv(records, settings.folder / "gallery.csv")
    names = ", ".join(dict.fromkeys(task.group for task in tasks))
    write_contact_sheet(tasks, settings, "gallery.png", f"{names}, {settings.preset}")
    tables = finish("Gallery suite", tasks, records, settings, gallery.FIGURES, ("figures",))
    return f"{gallery.asset_table(records)}\n{tables}"


def evaluate_household(
    settings: Settings, assets: Path | None, library: Path | None, seeds: int, pool: Pool
) -> str:
    """Runs the household suite; also says which share of the ceiling is reached.

    Args:
        settings: how assets are generated, and the folder of results.
        assets: a folder of meshes or runs to judge; None to generate the assets.
        library: the packed true meshes; None for the small part of the repository.
        seeds: seeds for each prompt.
        pool: what runs the tasks.

    Returns:
        The tables as text, and the shares of the ceiling.

    Raises:
        UserError: an option changes nothing, the outside judge is not installed, or
            `lock_to_settings` or `run_tasks` refuses.
    """
    if assets is not None:
        given = run_options(settings, seeds) | {"--config": bool(settings.files)}
        refuse_unused(given | dict.fromkeys(settings.overrides, True))
        settings = replace(settings, world="")  # its models are not read
    folder = (library or household.HOUSEHOLD_PART).absolute()
    meshes = household.library_of(folder)
    tasks = household.suite_tasks(seeds) if assets is None else household.folder_tasks(assets)
    suite: dict[str, Any] = {"suite": "household"}
    suite["assets"] = str(assets.absolute()) if assets else None
    suite |= {"library": relative_to_repository(folder), "meshes": len(meshes.rows)}
    lock_to_settings(settings, suite, household.judge_sources())
    records = run_tasks(tasks, settings, partial(household.judge_asset, library=folder), pool)
    tables = finish("Household suite", tasks, records, settings, household.FIGURES, tuple(PARTS))
    shares = {part: household.share_of_ceiling(records, part) for part in ("drawn", "figures")}
    write_json(settings.folder / "ceiling.json", shares)
    return "\n".join([tables.rstrip(), *household.ceiling_lines(records), ""])


def evaluate_stylised(settings: Settings, seeds: int, pool: Pool) -> str:
    """Runs the stylised suite; writes the contact sheet `stylised.png` as well.

    Args:
        settings: how assets are generated, and the folder of results.
        seeds: seeds for each noun, with and without each picture.
        pool: what runs the tasks.

    Returns:
        The tables as text.

    Raises:
        UserError: a picture is given, or `lock_to_settings` or `run_tasks` refuses.
    """
    if any(word.startswith("image=") for word in settings.overrides):
        raise UserError(
            "image= changes nothing with --suite stylised, which has its own pictures; leave it out"
        )
    lock_to_settings(settings, {"suite": "stylised"}, gallery.JUDGES)
    pictures = settings.folder / "references"
    stylised.write_references(pictures)
    run_tasks(stylised.plain_tasks(seeds), settings, stylised.generate_plain, pool)
    tasks = stylised.styled_tasks(pictures, seeds)
    records = run_tasks(tasks, settings, stylised.judge_asset, pool)
    title = "reference | with the picture | without the picture"
    write_contact_sheet(tasks, settings, "stylised.png", title)
    return finish("Stylised suite", tasks, records, settings, stylised.FIGURES, ("figures",))


def write_contact_sheet(tasks: Sequence[Task], settings: Settings, name: str, title: str) -> None:
    """Writes the rows of all tasks as one PNG called `name` into the folder of results."""
    rows = [settings.result(task).with_suffix(".png") for task in tasks]
    gallery.write_sheet(rows, settings.folder / name, title)


def finish(
    title: str,
    tasks: Sequence[Task],
    records: Sequence[Record],
    settings: Settings,
    figures: Mapping[str, Figure],
    parts: tuple[str, ...],
) -> str:
    """Writes `summary.json` and `index.html` into the folder of results.

    Args:
        title: the title of page and tables.
        tasks: the tasks of the suite.
        records: their records, in the same order.
        settings: how assets were generated, and the folder of results.
        figures: the figures of the suite.
        parts: the parts of the records that have figures; each is a table.

    Returns:
        The tables as text.
    """
    summary: dict[str, Any] = summarise(records, figures, parts)
    facts = facts_of(tasks, records, settings)
    head = {"title": title, "facts": facts, "about": circumstances()}
    write_json(settings.folder / "summary.json", head | summary)
    page = settings.folder / "index.html"
    assets = list(zip(tasks, records, strict=True))
    write_page(page, title, facts, summary, figures, assets, settings)
    tables = [
        text_table(*rows_of(summary[part], figures), PARTS[part])
        for part in parts
        if summary[part][ALL_SETS]
    ]
    first = f"{title}: " + ", ".join(f"{name} {value}" for name, value in facts.items())
    explained = legend(figures, summary["figures"][ALL_SETS], INTERVAL)
    return "\n".join([first, "", *tables, f"{explained}; {failures_line(summary)}", str(page), ""])


def facts_of(
    tasks: Sequence[Task], records: Sequence[Record], settings: Settings
) -> dict[str, str]:
    """The facts above the tables, by name.

    Args:
        tasks: the tasks of the suite.
        records: their records.
        settings: how assets were generated; not stated if they were read from a folder.
    """
    facts = {}
    if any(not task.source for task in tasks):
        seeds = max(Counter((task.group, task.prompt, task.image) for task in tasks).values())
        facts = {"preset": settings.preset, "seeds": str(seeds)}
    if settings.files:
        facts["config"] = ", ".join(map(relative_to_repository, settings.files))
    if settings.overrides:
        facts["settings"] = " ".join(settings.overrides)
    return facts | provenance_of(records)
