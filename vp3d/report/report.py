"""The report of a run: one HTML file that opens offline and holds the asset, how it came about, and its figures.

Everything is read from the run folder and the asset; a part that is not there (no visual prompt kept, no ffmpeg, a run
without steps) is left out and the rest stands. Figures of exports are named `<format>_<figure>`, as in "glb_iou".
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from vp3d.config.paths import expand
from vp3d.config.schema import Config
from vp3d.diffusion.view_classifier import apart
from vp3d.export.formats import WRITERS
from vp3d.export.glb import write_glb
from vp3d.prompts import SECTORS, view_words
from vp3d.report import html
from vp3d.report.pictures import AZIMUTHS, ELEVATION_DEG, VIEWS, ring_frames
from vp3d.report.plots import curves, plot_svgs, write_plots
from vp3d.report.privacy import public_events, public_settings
from vp3d.report.viewer import viewer_page
from vp3d.runs.folder import RunFolder
from vp3d.system.files import write_text
from vp3d.types import Asset
from vp3d.visual_prompt.make import CUTOUT_FILE, SCORES_FILE, candidate_file

VIEW_SIZE = 288  # pixels of a side of each of the eight views
LAST = 10  # logged steps that the final reward is the mean of
FIGURES = {
    "iou": ("silhouette IoU", "{:.3f}"),
    "psnr": ("PSNR", "{:.1f} dB"),
    "psnr_object": ("PSNR on the object", "{:.1f} dB"),
}
VIDEOS = {".mp4": "video/mp4", ".gif": "image/gif"}
COUNTED = ("step", "checkpoint", "stopped")  # kinds of events that say at which step a run is
NOTED = (
    "warning",
    "restart",
    "bad_step",
    "out_of_memory",
    "stopped",
    "resume",
)  # kinds of events a reader should know of


def write_report(run: RunFolder, asset: Asset) -> Path:
    """Write `report.html` (and `plots.png`, the same plots as a picture) into the run folder; returns the report's path."""
    config = run.config()
    personal = [run.path.absolute().parent, Path.cwd(), expand("~")]
    personal += [expand(config.image).absolute().parent, expand(config.output_dir)]
    events = public_events(run.events(), personal)
    write_plots(events, run.path / "plots.png")
    plots = "".join(f'<div class="card">{svg}</div>' for svg in plot_svgs(events).values())
    sections = [
        html.section("Visual prompt", visual_prompt(run)),
        html.section("Eight views", eight_views(asset, config, events)),
        html.section("How the exports compare with the field", export_table(asset.figures)),
        html.section("Optimisation", f'<div class="plots">{plots}</div>' if plots else ""),
        html.section("On the way", notes(events)),
        html.section("Files", files(run.path)),
        html.section(
            "Settings",
            html.folded("config.yaml", public_settings(run.stored_config())),
        ),
    ]
    path = run.path / "report.html"
    write_text(
        path, html.document(asset.prompt, facts(config, events), hero(run, asset, events), sections)
    )
    return path


def facts(config: Config, events: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What belongs under the title: seed, preset, steps, time, and the picture it was styled after."""
    seconds = time_spent(events)
    steps = next(
        (int(event["step"]) for event in reversed(events) if event.get("kind") in COUNTED), 0
    )
    told = {
        "seed": str(config.seed),
        "preset": config.preset,
        "steps": f"{steps} of {config.optim.steps}",
    }
    if seconds > 0:
        told["time"] = f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    if config.negative_prompt:
        told["negative prompt"] = config.negative_prompt
    if config.image:
        told["image"] = Path(config.image).name
    return told


def time_spent(events: Sequence[Mapping[str, Any]]) -> float:
    """Seconds a run took: the time from each "start" to the last event before the next one, without the pauses between."""
    total, previous = 0.0, None
    for event in events:
        now = float(event.get("time", 0.0))
        if previous is not None and event["kind"] != "start":
            total += max(now - previous, 0.0)
        previous = now
    return total


def hero(run: RunFolder, asset: Asset, events: Sequence[Mapping[str, Any]]) -> str:
    """The asset large: the 3D viewer, beside it the turntable and the main figures."""
    shown = html.viewer(viewer_of(run, asset), "Drag to turn, click and scroll to zoom.")
    return f'<div class="hero">{shown}<div>{video(run.path)}{html.stats(main_figures(asset, events))}</div></div>'


def viewer_of(run: RunFolder, asset: Asset) -> str:
    """The viewer's page for the exported `model.glb`, or for the mesh itself where no GLB was asked for."""
    if (run.path / "model.glb").is_file():
        return viewer_page(run.path / "model.glb")
    with tempfile.TemporaryDirectory() as folder:
        write_glb(asset, Path(folder) / "model.glb")
        return viewer_page(Path(folder) / "model.glb")


def video(folder: Path) -> str:
    """The turntable, embedded."""
    for suffix, kind in VIDEOS.items():
        path = folder / f"turntable{suffix}"
        if path.is_file():
            return html.turntable(html.data_uri(path.read_bytes(), kind), kind, "Turntable")
    return ""


def seen(events: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What the prior took the views of the last export for; nothing where it was not asked."""
    last: Mapping[str, Any] = next(
        (event for event in reversed(events) if event.get("kind") in ("views", "export")), {}
    )
    return last if last.get("kind") == "views" else {}


def main_figures(asset: Asset, events: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The first export's IoU and PSNR, rewards and opacity at the end, what the prior makes of the views, the mesh's size."""
    told = {}
    for name, (label, form) in FIGURES.items():
        values = [
            asset.figures[f"{kind}_{name}"] for kind in WRITERS if f"{kind}_{name}" in asset.figures
        ]
        if values and name != "psnr_object":
            told[label] = form.format(values[0])
    for name, (_, curve) in curves(events).items():
        last = curve[np.isfinite(curve)][-LAST:]
        if len(last) and name.startswith("reward"):
            told[f"{name.removeprefix('reward_').replace('_', '-')} reward"] = f"{last.mean():.3f}"
        elif len(last) and name == "opacity":
            told["mean opacity"] = f"{last.mean():.3f}"
    views = seen(events)
    if views:
        told["views recognised"] = f"{100 * views['view_agreement']:.0f} %"
        told["Janus score"] = f"{views['janus']:.2f}"
    return told | {"triangles": f"{len(asset.mesh.faces):,}"}


def export_table(figures: Mapping[str, float]) -> str:
    """Every export's figures against the field's own renders: a row a format."""
    rows = []
    for kind in WRITERS:
        cells = [
            form.format(figures[f"{kind}_{n}"]) if f"{kind}_{n}" in figures else "–"
            for n, (_, form) in FIGURES.items()
        ]
        if any(cell != "–" for cell in cells):
            rows.append([f"model.{kind}", *cells])
    return html.table(["file", *(label for label, _ in FIGURES.values())], rows)


def visual_prompt(run: RunFolder) -> str:
    """The candidates with their scores, the chosen one framed, and the cut-out that was used."""
    try:
        told = json.loads((run.visual_prompt / SCORES_FILE).read_text(encoding="utf-8"))
        scores, chosen, ragged = (
            list(told["scores"]),
            int(told["chosen"]),
            list(told.get("ragged", [])),
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # no visual prompt was kept, or it is damaged: the asset still stands
        return ""
    cards = []
    for n, score in enumerate(scores):
        label = "could not be cut out" if score is None else f"reward {float(score):.3f}"
        label = f"{label} · ragged cut-out" if n in ragged else label
        label = f"{label} · chosen" if n == chosen and len(scores) > 1 else label
        cards.append(
            _png_card(run.visual_prompt / candidate_file(n), label, n == chosen and len(scores) > 1)
        )
    cards.append(_png_card(run.visual_prompt / CUTOUT_FILE, "cut out, as it was used"))
    return html.tiles([card for card in cards if card])


def _png_card(path: Path, caption: str, chosen: bool = False) -> str:
    return (
        html.picture(html.data_uri(path.read_bytes(), "image/png"), caption, chosen)
        if path.is_file()
        else ""
    )


def eight_views(asset: Asset, config: Config, events: Sequence[Mapping[str, Any]]) -> str:
    """The mesh from eight sides, each with what the prior takes it for where that is another side."""
    views = ring_frames(asset.mesh, VIEWS, VIEW_SIZE, config.camera)
    labels = [view_words(azimuth, ELEVATION_DEG) for azimuth in AZIMUTHS]
    named = seen(events).get("named", [])
    for k in np.flatnonzero(apart(np.array(named, int), np.arange(len(named))) > 1):
        labels[k] += f" · taken for {SECTORS[named[k]]}"
    return html.tiles(
        [
            html.picture(html.data_uri(png(v), "image/png"), label)
            for v, label in zip(views, labels, strict=True)
        ]
    )


def png(picture: np.ndarray) -> bytes:
    """A picture `[H, W, 3]` uint8 sRGB as the bytes of a PNG."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", optimize=True)
    return out.getvalue()


def notes(events: Sequence[Mapping[str, Any]]) -> str:
    """What went otherwise than planned, one row an event."""
    rows = [
        [str(e["kind"]).replace("_", " "), str(e.get("step", "")), _details(e)]
        for e in events
        if e["kind"] in NOTED
    ]
    return html.table(["event", "step", "details"], rows, words=True)


def _details(event: Mapping[str, Any]) -> str:
    """The data of an event in words; its message alone where it has one."""
    rest = {name: value for name, value in event.items() if name not in ("time", "kind", "step")}
    if "message" in rest:
        return str(rest["message"])
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in rest.items())


def files(folder: Path) -> str:
    """The run's files by name and size, as links that work while the report lies in its folder."""
    found = sorted(
        p
        for p in folder.iterdir()
        if p.is_file() and not p.name.startswith(".") and p.name != "report.html"
    )
    rows = [
        f'<li><a href="{quote(p.name)}">{escape(p.name)}</a> {max(1, p.stat().st_size // 1024):,} KiB</li>'
        for p in found
    ]
    return f"<ul>{''.join(rows)}</ul>" if rows else ""
