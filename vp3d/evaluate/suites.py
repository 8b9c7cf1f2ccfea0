"""Prompt suites: read the prompts, let the judge look at the exported meshes, and write the table, files and gallery.

Conventions: a suite file has one prompt a line, optionally followed by `seed=N`; `#` starts a comment. Attributes are dicts
with the judge's head names (`object_a`, `color_a`, `accent_a`, `pattern`, `object_b`, `color_b`, `relation`); "none" means
there is no such thing. Meshes are judged unlit, because their colours hold the light of the pictures they were made from.
A view is right when both objects and their colours are; a prompt passes when `PASS_SHARE` of its eight views are right.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from vp3d.config import CameraConfig
from vp3d.errors import UserError
from vp3d.evaluate.judge import Judge, judge_views
from vp3d.evaluate.metrics import bootstrap_interval
from vp3d.evaluate.views import (
    AZIMUTHS,
    ELEVATION_DEG,
    FAINT,
    GROUND,
    INK,
    PAPER,
    VIEWS,
    font,
    labelled,
    ring_frames,
    save_image,
    sheet,
    shorten,
)  # fmt: skip
from vp3d.prompts import view_words
from vp3d.render.camera import ring
from vp3d.render.raster import render_mesh
from vp3d.run_folder import write_json, write_text
from vp3d.types import Mesh

PASS_SHARE = 0.75  # of the views that must be right
JUDGE_GROUND = (
    0.7  # grey behind a mesh while it is judged, the middle one of the judge's training grounds
)
OBJECTS, COLORS = ("object_a", "object_b"), ("color_a", "color_b")
DETAILS = ("accent_a", "pattern", "relation")
SYMMETRIC = (
    "next to",
)  # "a next to b" is "b next to a", and seen from behind left and right are swapped
SWAP = {"object_a": "object_b", "object_b": "object_a", "color_a": "color_b", "color_b": "color_a"}
RIGHT, WRONG = (38, 132, 74), (186, 60, 48)  # sRGB of labels in the gallery
_SEED = re.compile(r"\s+seed=(\S+)\s*$")


@dataclass(frozen=True)
class SuitePrompt:
    """One line of a suite, and its number in the file."""

    prompt: str
    seed: int = 0
    line: int = field(default=0, compare=False)


def parse_suite(text: str, name: str = "the suite") -> list[SuitePrompt]:
    """The prompts of a suite's text; UserError names the line that is wrong."""
    prompts = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("#")[0].strip()
        found = _SEED.search(f" {line}")
        if found and not found[1].isdecimal():
            raise UserError(f"{name}, line {number}: seed={found[1]} is not a whole number >= 0")
        prompt = _SEED.sub("", f" {line}").strip()
        if found and not prompt:
            raise UserError(f"{name}, line {number}: there is a seed but no prompt")
        if prompt:
            prompts.append(SuitePrompt(prompt, int(found[1]) if found else 0, number))
    if not prompts:
        raise UserError(f"{name} holds no prompts; write one a line, like `a red sphere seed=3`")
    return prompts


def read_suite(path: Path) -> list[SuitePrompt]:
    """`parse_suite` of a file."""
    try:
        return parse_suite(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise UserError(f"there is no prompt file {path}; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the prompt file {path} ({error}); it must be a UTF-8 text file"
        ) from error


def agrees(named: Mapping[str, str], expected: Mapping[str, str], keys: Sequence[str]) -> bool:
    """Whether the judge's names are the expected ones for `keys`; a key that `expected` lacks is not asked."""
    return all(named[key] == expected[key] for key in keys if key in expected)


def check_view(named: Mapping[str, str], expected: Mapping[str, str]) -> dict[str, bool]:
    """Whether the objects, the colours, both (`right`) and the details of one view are right.

    The two objects of a symmetric relation may be named in either order, each with its own colour.
    """
    orders = [named]
    if expected.get("relation") in SYMMETRIC:
        orders.append({key: named[SWAP.get(key, key)] for key in named})
    best = max(
        orders, key=lambda n: (agrees(n, expected, OBJECTS + COLORS), agrees(n, expected, OBJECTS))
    )
    objects, colors = agrees(best, expected, OBJECTS), agrees(best, expected, COLORS)
    return {
        "right": objects and colors,
        "objects": objects,
        "colors": colors,
        **{key: agrees(named, expected, (key,)) for key in DETAILS},
    }


def score_asset(
    judge: Judge,
    mesh: Mesh,
    expected: Mapping[str, str],
    camera: CameraConfig | None = None,
    ground: float = JUDGE_GROUND,
    size: int = 128,
) -> dict[str, Any]:
    """What the judge sees in eight views of a mesh (rendered `size` x `size`) against the `expected` attributes.

    Returns `views` (one dict each: azimuth_deg, the names, what is right), the share of views where each thing is right
    (`right`, `objects`, `colors`, `accent_a`, `pattern`, `relation`, in [0, 1]) and `passed`.
    """
    unknown = [k for k, v in expected.items() if v not in judge.values.get(k, [])]
    if unknown:
        raise ValueError(
            f"the judge has no such value: {', '.join(f'{k}={expected[k]}' for k in unknown)}"
        )
    camera = camera or CameraConfig()
    cameras = ring(VIEWS, ELEVATION_DEG, camera.distance, camera.fov_deg)
    names = judge_views(judge, render_mesh(mesh, cameras, size, size, ground)[0])
    views = [
        {"azimuth_deg": azimuth, "named": named, **check_view(named, expected)}
        for azimuth, named in zip(AZIMUTHS, names, strict=True)
    ]
    asked = ("right", "objects", "colors", *(key for key in DETAILS if key in expected))
    shares = {key: float(np.mean([view[key] for view in views])) for key in asked}
    return {
        "expected": dict(expected),
        **shares,
        "passed": shares["right"] >= PASS_SHARE,
        "views": views,
    }


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


def seen_as(score: Mapping[str, Any]) -> str:
    """What the judge takes the asset for, in most views: "red sphere", "red sphere on blue cube"."""
    names = [_phrase(view["named"]) for view in score["views"]]
    return max(names, key=names.count)


def _phrase(named: Mapping[str, str]) -> str:
    first = f"{named['color_a']} {named['object_a']}"
    if named.get("object_b", "none") == "none":
        return first
    relation = named.get("relation", "none")
    return (
        f"{first} {'+' if relation == 'none' else relation} {named['color_b']} {named['object_b']}"
    )


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
    blank = np.full((size, size, 3), round(GROUND * 255), np.uint8)
    shown = blank if result.visual_prompt is None else resized(result.visual_prompt, size)
    tiles.append(labelled(shown, "visual prompt"))
    for view, azimuth, judged in zip(views, AZIMUTHS, result.score["views"], strict=True):
        label, right = view_words(azimuth, ELEVATION_DEG).removesuffix(" view"), judged["right"]
        tiles.append(
            labelled(view, label if right else f"{label}: wrong", RIGHT if right else WRONG)
        )
    return tiles


def resized(picture: np.ndarray, size: int) -> np.ndarray:
    """A square picture `[H, W, 3]` uint8 at `size` pixels a side."""
    return np.asarray(
        Image.fromarray(picture).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    )


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
