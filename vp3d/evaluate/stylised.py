"""The stylised suite: three nouns in the colours of five reference pictures.

Each noun is generated with each picture (`image=`), and once without a picture. Measured are the
share of views in which the judge still finds the noun, and the distance of the asset's main colours
from the picture's (mean CIEDE2000, lower is closer), with the picture and without it. The contact
sheet `stylised.png` shows the picture, three views with it and three views without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vp3d.evaluate.gallery import embedded_judge, join_tiles
from vp3d.evaluate.html import write_asset_turntable
from vp3d.evaluate.runner import Record, Settings, Task, find_mesh, read_record, record_head
from vp3d.evaluate.statistics import Figure
from vp3d.metrics.attribute_judge import judge_views
from vp3d.metrics.attributes import JUDGE_BACKGROUND
from vp3d.metrics.colors import Palette, dominant_color_distance, dominant_colors
from vp3d.render.camera import ring
from vp3d.render.raster import render_mesh
from vp3d.report.pictures import PAPER, save_image
from vp3d.types import Mesh, to_uint8
from vp3d.worlds.toybox.images import render_spec
from vp3d.worlds.toybox.scenes import parse_caption

REFERENCES = (
    "a red sphere with yellow stripes",
    "a blue cube with white checks",
    "a green mushroom with a pink stem",
    "an orange lamp with a purple base",
    "a cyan egg with black stripes",
)
NOUNS = ("chair", "mug", "rocket")
SET, SET_WITHOUT = "stylised", "without a picture"
VIEWS, ELEVATION_DEG, DISTANCE, FOV_DEG, SIZE = 8, 15.0, 2.9, 40.0, 128  # of the judged views
SHOWN_VIEWS = [0, 1, 3]
REFERENCE_SIZE, REFERENCE_AZIMUTH_DEG = 256, 30.0
BACKGROUND_TOLERANCE = 8  # of 255, between a picture's corner and its background
OPAQUE = 0.9  # opacity of a pixel whose colour counts
FIGURES = {
    "kept": Figure("views with the noun"),
    "color_error": Figure("colour error, CIEDE2000", share=False),
    "without": Figure("colour error without the picture", share=False),
    "seconds": Figure("seconds", share=False),
}


def write_references(folder: Path) -> None:
    """Draws the reference pictures into `folder`, as `reference0.png` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, caption in enumerate(REFERENCES):
        spec = parse_caption(caption)
        picture = render_spec(spec, [REFERENCE_AZIMUTH_DEG], size=REFERENCE_SIZE)[0]
        save_image(Image.fromarray(picture), reference_file(folder, number))


def reference_file(folder: Path, number: int) -> Path:
    """The file of a reference picture."""
    return folder / f"reference{number}.png"


def plain_task(noun: str, seed: int) -> Task:
    """The task of a noun without a picture."""
    return Task(SET_WITHOUT, f"a {noun}", seed, f"{noun}-without-s{seed}", image="")


def plain_tasks(seeds: int) -> list[Task]:
    """The tasks without a picture, for seeds 0 to `seeds` - 1."""
    return [plain_task(noun, seed) for noun in NOUNS for seed in range(seeds)]


def styled_tasks(folder: Path, seeds: int) -> list[Task]:
    """The tasks with the pictures in `folder`, for seeds 0 to `seeds` - 1."""
    found = []
    for number in range(len(REFERENCES)):
        image = str(reference_file(folder, number))
        for noun in NOUNS:
            for seed in range(seeds):
                key = f"{noun}-{number}-with-s{seed}"
                found.append(Task(SET, f"a {noun}", seed, key, image=image))
    return found


def generate_plain(settings: Settings, task: Task) -> Record:
    """Generates an asset without a picture; its colours are measured by `judge_asset`."""
    found = find_mesh(settings, task)
    share = 0.0 if found.mesh is None else noun_share(found.mesh, task.prompt)
    return {
        **record_head(task, found),
        "figures": {"kept": share, "seconds": found.seconds},
    }


def judge_asset(settings: Settings, task: Task) -> Record:
    """Generates an asset with a picture, measures it, and draws its row of the contact sheet.

    The assets without a picture must have records (`generate_plain`).

    Returns:
        The record, with the caption of the "reference" picture.
    """
    with Image.open(task.image or "") as file:
        picture = np.array(file.convert("RGB"))
    target = picture_palette(picture)
    found, plain = find_mesh(settings, task), find_plain(settings, task)
    figures: dict[str, Any] = {"kept": 0.0, "color_error": None, "without": None}
    if found.mesh is not None:
        figures["kept"] = noun_share(found.mesh, task.prompt)
        figures["color_error"] = dominant_color_distance(palette(found.mesh), target)
    if plain is not None:
        figures["without"] = dominant_color_distance(palette(plain), target)
    row = join_tiles(style_tiles(picture, (found.mesh, plain)))
    save_image(row, settings.result(task).with_suffix(".png"))
    write_asset_turntable(found, settings.result(task))
    return {
        **record_head(task, found),
        "figures": figures | {"seconds": found.seconds},
        "reference": REFERENCES[int(Path(task.image or "").stem.removeprefix("reference"))],
    }


def find_plain(settings: Settings, task: Task) -> Mesh | None:
    """The mesh of the same noun and seed without a picture; None if that run failed."""
    plain = plain_task(task.prompt.removeprefix("a "), task.seed)
    record = read_record(settings, plain)
    if record is not None and record["failure"]:
        return None
    return find_mesh(settings, plain).mesh


def picture_palette(picture: np.ndarray) -> Palette:
    """The main colours of a picture `[H, W, 3]` uint8, without its background.

    The background is what has the colour of the upper left corner.
    """
    difference = np.abs(picture.astype(int) - picture[0, 0]).max(-1)
    return dominant_colors(picture / 255.0, difference > BACKGROUND_TOLERANCE)


def views_of(mesh: Mesh) -> tuple[torch.Tensor, torch.Tensor]:
    """Views `[8, 3, S, S]` in [0, 1] on the judge's background, and opacity `[8, 1, S, S]`."""
    return render_mesh(
        mesh, ring(VIEWS, ELEVATION_DEG, DISTANCE, FOV_DEG), SIZE, SIZE, JUDGE_BACKGROUND
    )


def noun_share(mesh: Mesh, prompt: str) -> float:
    """Share in [0, 1] of eight views in which the judge finds the noun of the prompt "a NOUN"."""
    named = judge_views(embedded_judge(), views_of(mesh)[0])
    return float(np.mean([view["object_a"] == prompt.removeprefix("a ") for view in named]))


def palette(mesh: Mesh) -> Palette:
    """The main colours of a mesh over eight views."""
    rgb, opacity = views_of(mesh)
    return dominant_colors(
        rgb.permute(0, 2, 3, 1).flatten(0, 1).numpy(),
        opacity[:, 0].flatten(0, 1).numpy() > OPAQUE,
    )


def style_tiles(picture: np.ndarray, meshes: Sequence[Mesh | None]) -> list[Image.Image]:
    """The reference picture and three views of each mesh, blank tiles for one that is missing."""
    tiles = [Image.fromarray(picture).resize((SIZE, SIZE))]
    for mesh in meshes:
        if mesh is None:
            tiles += [Image.new("RGB", (SIZE, SIZE), PAPER) for _ in SHOWN_VIEWS]
        else:
            tiles += [Image.fromarray(view) for view in to_uint8(views_of(mesh)[0][SHOWN_VIEWS])]
    return tiles
