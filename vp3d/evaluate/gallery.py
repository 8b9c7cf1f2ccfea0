"""The gallery suite: 24 prompts, judged view by view, with a table and a contact sheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from vp3d.config.schema import CameraConfig
from vp3d.evaluate.prompt_file import SuitePrompt
from vp3d.evaluate.statistics import bootstrap_interval
from vp3d.metrics.attributes import DETAILS, PASS_SHARE, RIGHT, WRONG, seen_as
from vp3d.prompts import view_words
from vp3d.report.pictures import (
    AZIMUTHS,
    BACKGROUND,
    ELEVATION_DEG,
    FAINT,
    INK,
    PAPER,
    VIEWS,
    font,
    labelled,
    resized,
    ring_frames,
    save_image,
    sheet,
    shorten,
)
from vp3d.system.files import write_json, write_text
from vp3d.types import Mesh


@dataclass(frozen=True)
class Result:
    """One finished prompt of a suite: what was asked, the judge's score, and what the gallery shows.

    visual_prompt is a picture `[H, W, 3]` uint8 sRGB, or None.
    """

    prompt: SuitePrompt
    score: dict[str, Any]
    mesh: Mesh
    visual_prompt: np.ndarray | None = None
    seconds: float = 0.0


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One flat record for each result."""
    return [
        {
            "prompt": r.prompt.prompt,
            "seed": r.prompt.seed,
            "passed": r.score["passed"],
            **{
                k: round(r.score[k], 4)
                for k in ("right", "objects", "colors", *DETAILS)
                if k in r.score
            },
            "seen_as": seen_as(r.score),
            "seconds": round(r.seconds, 1),
        }
        for r in results
    ]


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Shares over the whole suite, each `[value, low, high]` with the 95 % bootstrap interval over prompts, and the records."""
    generator = torch.Generator().manual_seed(0)
    measured = {}
    for key in ("passed", "right", "objects", "colors"):
        values = torch.tensor([float(r.score[key]) for r in results])
        measured[key] = [float(values.mean()), *bootstrap_interval(values, generator)]
    return {
        "prompts": len(results),
        "pass_share_needed": PASS_SHARE,
        **measured,
        "records": rows(results),
    }


def suite_table(results: Sequence[Result], width: int = 110) -> str:
    """The suite as a table in plain text, with the totals below."""
    table = Table(box=None, pad_edge=False)
    table.add_column("prompt", overflow="fold")
    for name in ("seed", "right", "objects", "colours"):
        table.add_column(name, justify="right")
    table.add_column("mostly seen as", overflow="fold")
    table.add_column("")
    for r in rows(results):
        eighths = (f"{round(r[key] * VIEWS)}/{VIEWS}" for key in ("right", "objects", "colors"))
        table.add_row(
            r["prompt"], str(r["seed"]), *eighths, r["seen_as"], "pass" if r["passed"] else "FAIL"
        )
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, highlight=False, markup=False)
    console.print(table)
    total = summary(results)
    passed = sum(bool(r.score["passed"]) for r in results)
    console.print(
        f"\npassed {passed} of {len(results)}: {_interval(total['passed'])}; views right: {_interval(total['right'])}"
    )
    return out.getvalue()


def _interval(values: Sequence[float]) -> str:
    share, low, high = (100.0 * v for v in values)
    return f"{share:.0f} % (95 % interval {low:.0f} to {high:.0f})"


def write_suite(results: Sequence[Result], folder: Path, name: str) -> None:
    """`name`.csv (one row a prompt) and `name`.json (totals, records and every view) in `folder`."""
    records = rows(results)
    columns = list(dict.fromkeys(key for record in records for key in record))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(records)
    write_text(folder / f"{name}.csv", out.getvalue())
    scores = [{"prompt": r.prompt.prompt, "seed": r.prompt.seed, **r.score} for r in results]
    write_json(folder / f"{name}.json", summary(results) | {"scores": scores})


def write_gallery(
    results: Sequence[Result],
    path: Path,
    title: str,
    camera: CameraConfig | None = None,
    size: int = 128,
) -> None:
    """The contact sheet of a suite as one PNG: a row an asset, its prompt, visual prompt and eight views, wrong ones in red."""
    camera = camera or CameraConfig()
    save_image(sheet([gallery_row(r, camera, size) for r in results], title), path)


def gallery_row(result: Result, camera: CameraConfig, size: int) -> list[Image.Image]:
    """One asset's tiles: the prompt in words, its visual prompt, eight views labelled by view and coloured by right or wrong."""
    views = ring_frames(result.mesh, VIEWS, size, camera)
    tiles = [prompt_tile(result, int(1.5 * size), size)]
    blank = np.full((size, size, 3), round(BACKGROUND * 255), np.uint8)
    shown = blank if result.visual_prompt is None else resized(result.visual_prompt, size)
    tiles.append(labelled(shown, "visual prompt"))
    for view, azimuth, judged in zip(views, AZIMUTHS, result.score["views"], strict=True):
        label, right = view_words(azimuth, ELEVATION_DEG).removesuffix(" view"), judged["right"]
        tiles.append(
            labelled(view, label if right else f"{label}: wrong", RIGHT if right else WRONG)
        )
    return tiles


def prompt_tile(result: Result, width: int, height: int) -> Image.Image:
    """The prompt in words, wrapped, with its verdict below."""
    tile = Image.new("RGB", (width, height), PAPER)
    draw, text_size = ImageDraw.Draw(tile), max(13, height // 8)
    lines, letter = [""], font(text_size)
    for word in result.prompt.prompt.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if letter.getlength(longer) <= width else [*lines, word]
    room = max(1, int((height - 2.2 * text_size) // (1.25 * text_size)))
    for i, line in enumerate(lines[:room]):
        draw.text(
            (0, 0.1 * height + 1.25 * text_size * i),
            shorten(line, width, text_size),
            fill=INK,
            font=letter,
        )
    count = sum(view["right"] for view in result.score["views"])
    verdict, color = (f"{count}/{VIEWS} views right", RIGHT if result.score["passed"] else WRONG)
    below = 0.1 * height + 1.25 * text_size * min(len(lines), room) + 4
    draw.text((0, below), verdict, fill=color, font=font(max(11, text_size - 3)))
    draw.text(
        (0, below + text_size),
        f"seed {result.prompt.seed}",
        fill=FAINT,
        font=font(max(11, text_size - 3)),
    )
    return tile
