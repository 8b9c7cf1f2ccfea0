"""The gallery suite: 24 prompts (`assets/prompts/gallery.txt`), judged view by view.

The judge names objects and colours in eight views of each mesh. A view is right if both are right;
a prompt passes if `PASS_SHARE` of its views are right. A failed asset counts 0 in every share.
Besides the files of every suite, the folder of results has `gallery.csv`, a row for each asset, and
`gallery.png`, the contact sheet: each row shows the prompt, the visual prompt and the eight views,
the wrong ones labelled in red.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vp3d.config.paths import ASSETS, MANIFEST, ROOT, locate
from vp3d.config.schema import CameraConfig
from vp3d.errors import UserError
from vp3d.evaluate.html import write_asset_turntable
from vp3d.evaluate.prompt_file import SuitePrompt, read_suite
from vp3d.evaluate.prompt_tasks import file_tasks, set_names
from vp3d.evaluate.runner import FoundAsset, Record, Settings, Task, find_mesh, record_head
from vp3d.evaluate.statistics import Figure, text_table
from vp3d.evaluate.toybench import visual_prompt
from vp3d.metrics.attribute_judge import Judge, load_judge
from vp3d.metrics.attributes import DETAILS, most_named, score_asset
from vp3d.prompts import normalize_prompt, view_words
from vp3d.report.pictures import (
    AZIMUTHS,
    BACKGROUND,
    ELEVATION_DEG,
    FAINT,
    GAP,
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
from vp3d.system.files import write_text
from vp3d.types import Mesh
from vp3d.worlds.toybox.data import attributes
from vp3d.worlds.toybox.scenes import Spec, parse_caption

PROMPTS = ROOT / "assets" / "prompts" / "gallery.txt"
JUDGES = ((str(ASSETS / "judge"), str(MANIFEST)),)  # the weights that a record depends on
TILE = 128  # pixels of a side of a view on the contact sheet
RIGHT, WRONG = (38, 132, 74), (186, 60, 48)  # sRGB of labels
SHARES = ("right", "objects", "colors")
FIGURES = {
    "passed": Figure("prompts passed"),
    "right": Figure("views right"),
    "objects": Figure("objects"),
    "colors": Figure("colours"),
    "accent_a": Figure("parts, second colour"),
    "pattern": Figure("pattern"),
    "relation": Figure("relation"),
    "seconds": Figure("seconds", share=False),
}


@lru_cache(maxsize=1)
def embedded_judge() -> Judge:
    """The toybox's judge, loaded once a process."""
    return load_judge(ASSETS / "judge", MANIFEST)


def read_captions(path: Path) -> list[tuple[SuitePrompt, Spec]]:
    """The prompts of a file with the scenes that they describe.

    Raises:
        UserError: a prompt is not a caption of the toybox; the message gives its line.
    """
    found = []
    for entry in read_suite(path):
        try:
            found.append((entry, parse_caption(normalize_prompt(entry.prompt))))
        except ValueError as error:
            raise UserError(f"{path}, line {entry.line}: {error}") from error
    return found


def suite_tasks(files: Sequence[Path], every: int, seeds: int) -> list[Task]:
    """The tasks of the suite.

    Args:
        files: prompt files; `PROMPTS` if there are none. A set has the name of its file.
        every: take every n-th prompt of each file.
        seeds: how many seeds each prompt has: its own and those after it.

    Returns:
        The tasks, file by file.
    """
    located = [locate(str(file)) for file in files] or [PROMPTS]
    set_names(located)  # refuses a file that is given twice
    prompts = {}
    for file in located:
        numbered = list(enumerate(read_captions(file), 1))[::every]
        prompts[file] = [(number, entry) for number, (entry, _) in numbered]
    return file_tasks(prompts, seeds)


def judge_asset(settings: Settings, task: Task) -> Record:
    """Generates the task's asset, judges it, and draws its row of the contact sheet.

    Returns:
        The record: "figures" in [0, 1] (and seconds), what the judge named in each of the "views",
        and "named", what it named most often.
    """
    expected = attributes(parse_caption(normalize_prompt(task.prompt)))
    found = find_mesh(settings, task)
    score = None if found.mesh is None else score_asset(embedded_judge(), found.mesh, expected)
    result = settings.result(task)
    row = GalleryRow(task.prompt, task.seed, score, found.mesh, visual_prompt(found))
    save_image(join_tiles(row_tiles(row, CameraConfig(), TILE)), result.with_suffix(".png"))
    write_asset_turntable(found, result)
    return record_of(task, found, score)


def record_of(task: Task, found: FoundAsset, score: dict[str, Any] | None) -> Record:
    """The record of an asset.

    Args:
        task: its task.
        found: the asset, or its failure.
        score: what `score_asset` returned; None after a failure.

    Returns:
        What `judge_asset` returns.
    """
    figures: dict[str, Any] = dict.fromkeys(("passed", *SHARES, *DETAILS), 0.0)
    if score is not None:
        figures = {key: score[key] for key in (*SHARES, *DETAILS) if key in score}
        figures = {"passed": float(score["passed"])} | figures
    return {
        **record_head(task, found),
        "figures": figures | {"seconds": found.seconds},
        "named": None if score is None else most_named(score),
        "views": None if score is None else score["views"],
    }


def asset_table(records: Sequence[Record]) -> str:
    """A table in plain text with a row for each asset: views right, and what the judge named."""
    rows = []
    for record in records:
        figures = record["figures"]
        counts = [f"{round(figures[key] * VIEWS)}/{VIEWS}" for key in SHARES]
        named = record["named"] or record["failure"]
        passed = "pass" if figures["passed"] else "FAIL"
        rows.append([record["prompt"], str(record["seed"]), *counts, named, passed])
    header = ["prompt", "seed", "right", "objects", "colours", "mostly named", ""]
    return text_table(header, rows, "Views right")


def write_csv(records: Sequence[Record], path: Path) -> None:
    """Writes one row for each asset: prompt, seed, figures and what the judge named most often."""
    columns = ["prompt", "seed", "passed", *SHARES, *DETAILS, "named", "seconds", "failure"]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n", restval="", extrasaction="ignore")
    writer.writeheader()
    for record in records:
        figures = {k: round(v, 4) for k, v in record["figures"].items() if v is not None}
        writer.writerow(record | figures | {"passed": bool(figures["passed"])})
    write_text(path, out.getvalue())


def write_sheet(rows: Sequence[Path], path: Path, title: str) -> None:
    """Writes the pictures `rows` below each other as one PNG; files that do not exist are skipped.

    Args:
        rows: pictures, as `join_tiles` lays them out.
        path: the PNG file.
        title: the title of the page.
    """
    pictures = []
    for row in rows:
        if row.is_file():
            with Image.open(row) as picture:
                pictures.append([picture.convert("RGB")])
    if pictures:
        save_image(sheet(pictures, title), path)


def join_tiles(tiles: Sequence[Image.Image]) -> Image.Image:
    """The tiles in one row, spaced as `sheet` spaces them, without a margin."""
    width = sum(tile.width for tile in tiles) + GAP * (len(tiles) - 1)
    row = Image.new("RGB", (width, max(tile.height for tile in tiles)), PAPER)
    x = 0
    for tile in tiles:
        row.paste(tile, (x, 0))
        x += tile.width + GAP
    return row


@dataclass(frozen=True)
class GalleryRow:
    """What the contact sheet shows of an asset.

    Attributes:
        prompt: its prompt.
        seed: its seed.
        score: what `score_asset` returned; None after a failure.
        mesh: its mesh; None after a failure.
        visual_prompt: `[H, W, 3]` uint8 sRGB; None if there is none.
    """

    prompt: str
    seed: int
    score: dict[str, Any] | None
    mesh: Mesh | None
    visual_prompt: np.ndarray | None = None


def row_tiles(row: GalleryRow, camera: CameraConfig, size: int) -> list[Image.Image]:
    """The tiles of a row, `size` pixels high.

    Args:
        row: the asset.
        camera: distance and field of view of the views.
        size: pixels of a side of a view.

    Returns:
        The prompt in words, the visual prompt, and eight views (none after a failure), each
        labelled with its direction and coloured by right or wrong.
    """
    blank = np.full((size, size, 3), round(BACKGROUND * 255), np.uint8)
    picture = blank if row.visual_prompt is None else resized(row.visual_prompt, size)
    tiles = [prompt_tile(row, int(1.5 * size), size), labelled(picture, "visual prompt")]
    if row.mesh is None or row.score is None:
        return tiles
    views = ring_frames(row.mesh, VIEWS, size, camera)
    for view, azimuth, judged in zip(views, AZIMUTHS, row.score["views"], strict=True):
        label = view_words(azimuth, ELEVATION_DEG).removesuffix(" view")
        if judged["right"]:
            tiles.append(labelled(view, label, RIGHT))
        else:
            tiles.append(labelled(view, f"{label}: wrong", WRONG))
    return tiles


def prompt_tile(row: GalleryRow, width: int, height: int) -> Image.Image:
    """The prompt in wrapped words, with the result and the seed below it."""
    tile = Image.new("RGB", (width, height), PAPER)
    draw, text_size = ImageDraw.Draw(tile), max(13, height // 8)
    lines, letter = [""], font(text_size)
    for word in row.prompt.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if letter.getlength(longer) <= width else [*lines, word]
    max_lines = max(1, int((height - 2.2 * text_size) // (1.25 * text_size)))
    for i, line in enumerate(lines[:max_lines]):
        y = 0.1 * height + 1.25 * text_size * i
        draw.text((0, y), shorten(line, width, text_size), fill=INK, font=letter)
    result, color = "failed", WRONG
    if row.score is not None:
        count = sum(view["right"] for view in row.score["views"])
        result = f"{count}/{VIEWS} views right"
        color = RIGHT if row.score["passed"] else WRONG
    y = 0.1 * height + 1.25 * text_size * min(len(lines), max_lines) + 4
    small = font(max(11, text_size - 3))
    draw.text((0, y), result, fill=color, font=small)
    draw.text((0, y + text_size), f"seed {row.seed}", fill=FAINT, font=small)
    return tile
