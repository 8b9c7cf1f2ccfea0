"""What a batch hands out: `batch.jsonl`, a line for each asset, and `index.html` with all of them.

The records of the runs are the truth; both files are written from them. A line is appended as soon
as an asset is finished, and the whole file is written again at the end, in the order of the prompt
file. A lock serves the shards of a batch that share a folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vp3d.batch.assets import Asset, choose
from vp3d.batch.make import wait_for_lock
from vp3d.evaluate.runner import Record, Settings, read_record
from vp3d.finish import exported_formats
from vp3d.report import html
from vp3d.runs.folder import RunFolder
from vp3d.system.console import clock
from vp3d.system.files import disk_errors, plain, write_text

LINES, PAGE, LOCK = "batch.jsonl", "index.html", "locks/batch.lock"
REPORT = "report.html"  # of a run folder
STYLE = (
    "<style>.assets { display: grid; gap: .8rem; "
    "grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); } "
    ".assets img { display: block; width: 100%; } .bad { color: #c0392b; }</style>"
)


def line_of(asset: Asset, records: Mapping[str, Record], folder: Path) -> dict[str, Any] | None:
    """What `batch.jsonl` says of an asset; None if it is not finished.

    Args:
        asset: the asset.
        records: key -> record.
        folder: the folder of the batch; paths are relative to it.
    """
    best = choose(asset, records)
    if best is None:
        return None
    candidates = [candidate_of(records[task.key]) for task in asset.candidates]
    files: dict[str, str] = {}
    if not best["failure"]:
        run = RunFolder(folder / best["source"])
        files = {
            kind: run.model_file(kind).relative_to(folder).as_posix()
            for kind in exported_formats(run)
        }
    return {
        "prompt": asset.prompt,
        "seed": best["seed"],
        "failure": best["failure"],
        "reason": best["reason"],
        "run": best["source"],
        "files": files,
        "seconds": best["figures"].get("seconds"),
        "candidates": candidates,
    }


def candidate_of(record: Record) -> dict[str, Any]:
    """What `batch.jsonl` says of one candidate."""
    figures = record["figures"]
    return {
        "seed": record["seed"],
        "score": figures.get("score"),
        "failure": record["failure"],
        "reason": record["reason"],
        "run": record["source"],
        "seconds": figures.get("seconds"),
    }


def append_line(folder: Path, line: Mapping[str, Any]) -> None:
    """Append a line to `batch.jsonl`; one that a kill cut off before is ended first."""
    path = folder / LINES
    lock = wait_for_lock(folder / LOCK)
    try:
        with disk_errors(path), path.open("a+b") as stream:
            torn = stream.tell() > 0 and stream.seek(-1, 2) >= 0 and stream.read(1) != b"\n"
            stream.write(b"\n" * torn + as_text(line).encode())
    finally:
        lock.release()


def as_text(line: Mapping[str, Any]) -> str:
    """A line of `batch.jsonl`, with its end."""
    return json.dumps(plain(dict(line)), allow_nan=False) + "\n"


def publish(assets: Sequence[Asset], settings: Settings) -> list[dict[str, Any]]:
    """Write `batch.jsonl` and the page from the records of every asset, of all shards.

    Returns:
        The lines of the assets that are finished.
    """
    lock = wait_for_lock(settings.folder / LOCK)
    try:
        lines, cards = [], []
        for asset in assets:
            line = line_of(asset, read_records(asset, settings), settings.folder)
            if line is not None:
                lines.append(line)
                cards.append(card(asset, line, settings))
        write_text(settings.folder / LINES, "".join(map(as_text, lines)))
        write_text(settings.folder / PAGE, page(lines, cards, assets, settings))
    finally:
        lock.release()
    return lines


def read_records(asset: Asset, settings: Settings) -> dict[str, Record]:
    """Key -> record of the candidates that are finished."""
    found = ((task.key, read_record(settings, task)) for task in asset.candidates)
    return {key: record for key, record in found if record is not None}


def page(
    lines: Sequence[Mapping[str, Any]],
    cards: Sequence[str],
    assets: Sequence[Asset],
    settings: Settings,
) -> str:
    """The page of a batch: its facts, and a card for each of the assets that are finished.

    Args:
        lines: the lines of `batch.jsonl`.
        cards: the card of each line.
        assets: all assets of the batch; the page of one with several candidates is called so.
        settings: has the preset.
    """
    failures = sum(bool(line["failure"]) for line in lines)
    spent = sum(found["seconds"] or 0.0 for line in lines for found in line["candidates"])
    facts = {
        "preset": settings.preset,
        "assets": f"{len(lines)} of {len(assets)}",
        "failed": str(failures),
        "time of the runs": clock(spent),
    }
    shown = f'{STYLE}<div class="assets">{"".join(cards)}</div>'
    of_one = len(assets) == 1 and len(assets[0].candidates) > 1
    title = "Candidates" if of_one else "Batch"
    return html.document(title, facts, "", [html.section("Every asset", shown)])


def card(asset: Asset, line: Mapping[str, Any], settings: Settings) -> str:
    """An asset as HTML: views, prompt, seed and links to its files; then all its candidates."""
    links = {**line["files"], "report": f"{line['run']}/{REPORT}"} if line["run"] else {}
    caption = f"<b>{escape(asset.prompt)}</b> (seed {line['seed']}) · {linked(links)}{failed(line)}"
    shown = picture(asset, line["seed"], settings)
    return (
        f'<figure class="card">{shown}<figcaption>{caption}</figcaption>'
        f"{others(asset, line, settings)}</figure>"
    )


def others(asset: Asset, line: Mapping[str, Any], settings: Settings) -> str:
    """The candidates of an asset, the chosen one in bold; nothing if there is one alone.

    The card has the picture of the chosen one.
    """
    if len(line["candidates"]) < 2:
        return ""
    rows = []
    for found in line["candidates"]:
        score = "no score" if found["score"] is None else f"reward {found['score']:.3f}"
        words, shown = f"seed {found['seed']}: {score}", ""
        if found["seed"] == line["seed"]:
            words = f"<b>{words}, chosen</b>"
        else:
            shown = picture(asset, found["seed"], settings)
        report = {"report": f"{found['run']}/{REPORT}"} if found["run"] else {}
        rows.append(f"{shown}<figcaption>{words} {linked(report)}{failed(found)}</figcaption>")
    title = f"<summary>{len(rows)} candidates</summary>"
    return f"<details>{title}{''.join(rows)}</details>"


def picture(asset: Asset, seed: int, settings: Settings) -> str:
    """The views of a candidate as HTML; nothing if there are none."""
    task = next(task for task in asset.candidates if task.seed == seed)
    path = settings.result(task).with_suffix(".jpg")
    if not path.is_file():
        return ""
    uri = html.data_uri(path.read_bytes(), "image/jpeg")
    return f'<img src="{uri}" alt="views" loading="lazy">'


def linked(links: Mapping[str, str]) -> str:
    """Links by name."""
    return " ".join(f'<a href="{quote(path)}">{escape(name)}</a>' for name, path in links.items())


def failed(found: Mapping[str, Any]) -> str:
    """Why an asset or a candidate failed, as HTML."""
    if not found["failure"]:
        return ""
    return f'<b class="bad">{escape(found["failure"])}: {escape(found["reason"])}</b>'
