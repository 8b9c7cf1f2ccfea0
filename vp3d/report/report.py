"""The report of a run: one HTML file that opens offline and shows the asset and its figures.

Conventions: everything comes from the run folder and the asset. A part that does not exist (no
visual prompt, no video, no steps) is left out. Figures of exported files are named
`<format>_<figure>`, as in "glb_iou". Events are the dicts of events.jsonl, in order.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from vp3d.config.schema import CameraConfig
from vp3d.diffusion.view_classifier import sector_distance
from vp3d.export.formats import WRITERS
from vp3d.export.glb import write_glb
from vp3d.prompts import SECTORS, view_words
from vp3d.report import html
from vp3d.report.front_view import FRONT_PICTURES, in_words, last_front_view
from vp3d.report.pictures import AZIMUTHS, ELEVATION_DEG, VIEWS, ring_frames
from vp3d.report.plots import curves, plot_svgs, write_plots
from vp3d.report.privacy import personal_folders, public_events, public_settings
from vp3d.report.viewer import viewer_page
from vp3d.runs.folder import RunFolder
from vp3d.system.files import JsonError, printable, read_json_object, write_text
from vp3d.types import Asset
from vp3d.visual_prompt.make import CUTOUT_FILE, SCORES_FILE, candidate_file

Events = Sequence[Mapping[str, Any]]

VIEW_SIZE = 288  # pixels of a side of each of the eight views
LAST_STEPS = 10  # logged steps over which the final rewards and opacity are averaged
FIGURES = {  # name -> label and format
    "iou": ("silhouette IoU", "{:.3f}"),
    "psnr": ("PSNR", "{:.1f} dB"),
    "psnr_object": ("PSNR on the object", "{:.1f} dB"),
}
VIDEOS = {".mp4": "video/mp4", ".gif": "image/gif"}  # suffix -> media type
STEP_EVENTS = ("step", "checkpoint", "stopped")  # events whose `step` is that of the run
REFINE_EVENTS = ("refine_step", "refine_stopped")  # those of the second stage
# Events that are listed in the report.
OF_A_STAGE = ("restart", "bad_step", "stopped", "resume")
LISTED_EVENTS = ("warning", "out_of_memory", *OF_A_STAGE, *(f"refine_{k}" for k in OF_A_STAGE))


def write_report(run: RunFolder, asset: Asset) -> Path:
    """Write `report.html` and `plots.png`, the same plots as a picture, into the run folder.

    Returns:
        The path of `report.html`.
    """
    config = run.config()
    personal = personal_folders(run.path, config.image, config.output_dir)
    events = public_events(run.events(), personal)
    write_plots(events, run.path / "plots.png")
    plots = "".join(f'<div class="card">{svg}</div>' for svg in plot_svgs(events).values())
    settings = public_settings(run.stored_config())
    sections = [
        html.section("Visual prompt", visual_prompt(run)),
        html.section("Front view against the visual prompt", front_view(run, events)),
        html.section("Eight views", eight_views(asset, config.camera, events)),
        html.section("Exported files compared with the field", export_table(asset.figures)),
        html.section("Light and print", light_and_print(events)),
        html.section("Optimisation", f'<div class="plots">{plots}</div>' if plots else ""),
        html.section("Warnings and interruptions", notes(events)),
        html.section("Files", files(run.path)),
        html.section("Settings", html.folded("config.yaml", settings)),
    ]
    facts = {"seed": str(config.seed), "preset": config.preset}
    facts |= progress(config.optim.steps, events)
    if config.negative_prompt:
        facts["negative prompt"] = config.negative_prompt
    if config.image:
        facts["image"] = Path(config.image).name
    path = run.path / "report.html"
    write_text(path, html.document(asset.prompt, facts, hero(run, asset, events), sections))
    return path


def progress(planned_steps: int, events: Events) -> dict[str, str]:
    """How far a run came, by name: "steps" of `planned_steps`, and "time" if any was spent.

    A run that came to its second stage has "refine steps" too.
    """
    found = {"steps": f"{last_step(events, STEP_EVENTS).get('step', 0)} of {planned_steps}"}
    refined = last_step(events, REFINE_EVENTS)
    if refined:
        found["refine steps"] = f"{refined['step']} of {refined.get('steps', '?')}"
    seconds = time_spent(events)
    if seconds > 0:
        found["time"] = f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return found


def last_step(events: Events, kinds: Sequence[str]) -> Mapping[str, Any]:
    """The last event of `kinds` that has a step; empty if there is none."""
    known = (event for event in reversed(events) if event.get("kind") in kinds and "step" in event)
    return next(known, {})


def time_spent(events: Events) -> float:
    """Seconds that a run took with loading its models, without pauses.

    For each "start" event the time to the last event before the next "start". It begins when the
    process started ("process_started"), else when `generate` was called ("called"); in runs of
    older versions, which noted neither, at the event itself, when the models were loaded.
    """
    total, previous = 0.0, None
    for event in events:
        now = float(event.get("time", 0.0))
        if event["kind"] == "start":
            began = float(event.get("process_started") or event.get("called") or now)
            previous = min(began, now)  # a clock may have been set back
        if previous is not None:
            total += max(now - previous, 0.0)
        previous = now
    return total


def hero(run: RunFolder, asset: Asset, events: Events) -> str:
    """The large part at the top: the 3D viewer, and next to it the turntable and main figures."""
    model = html.viewer(viewer_of(run, asset), "Drag to rotate; click, then scroll to zoom.")
    figures = html.stats(main_figures(asset, events))
    return f'<div class="hero">{model}<div>{video(run.path)}{figures}</div></div>'


def viewer_of(run: RunFolder, asset: Asset) -> str:
    """The viewer's page for `model.glb`, or for the asset's mesh if the viewer cannot read it."""
    if (run.path / "model.glb").is_file() and run.config().export.compress != "draco":
        return viewer_page(run.path / "model.glb")
    with tempfile.TemporaryDirectory() as folder:
        write_glb(asset, Path(folder) / "model.glb")
        return viewer_page(Path(folder) / "model.glb")


def video(folder: Path) -> str:
    """The turntable of a run folder, embedded; "" without one."""
    for suffix, kind in VIDEOS.items():
        path = folder / f"turntable{suffix}"
        if path.is_file():
            return html.turntable(html.data_uri(path.read_bytes(), kind), kind, "Turntable")
    return ""


def view_guesses(events: Events) -> Mapping[str, Any]:
    """The "views" event of the last export: from where the prior sees each view of the mesh.

    Empty if the prior did not judge the views after the last export, or the event is damaged.
    """
    last: Mapping[str, Any] = next(
        (event for event in reversed(events) if event.get("kind") in ("views", "export")), {}
    )
    figures, named = [last.get(key) for key in ("view_agreement", "janus")], last.get("named")
    is_whole = (
        last.get("kind") == "views"
        and all(isinstance(figure, int | float) for figure in figures)
        and isinstance(named, list)
        and all(type(sector) is int and 0 <= sector < len(SECTORS) for sector in named)
        and len(named) <= VIEWS
    )
    return last if is_whole else {}


def main_figures(asset: Asset, events: Events) -> dict[str, str]:
    """The main figures by label.

    IoU and PSNR of the first exported format, final rewards and opacity, the prior's judgement of
    the views, and the number of triangles.
    """
    found = {}
    for name, (label, form) in FIGURES.items():
        keys = [f"{kind}_{name}" for kind in WRITERS if f"{kind}_{name}" in asset.figures]
        if keys and name != "psnr_object":
            found[label] = form.format(asset.figures[keys[0]])
    for name, (_, curve) in curves(events).items():
        last = curve[np.isfinite(curve)][-LAST_STEPS:]
        if len(last) and name.startswith("reward"):
            reward = name.removeprefix("reward_").replace("_", "-")
            found[f"{reward} reward"] = f"{last.mean():.3f}"
        elif len(last) and name == "opacity":
            found["mean opacity"] = f"{last.mean():.3f}"
    views = view_guesses(events)
    if views:
        found["views recognised"] = f"{100 * views['view_agreement']:.0f} %"
        found["Janus score"] = f"{views['janus']:.2f}"
    return found | {"triangles": f"{len(asset.mesh.faces):,}"}


def export_table(figures: Mapping[str, float]) -> str:
    """A table of the exported files, one row a format, compared with the field's own renders."""
    rows = []
    for kind in WRITERS:
        cells = [
            form.format(figures[f"{kind}_{name}"]) if f"{kind}_{name}" in figures else "–"
            for name, (_, form) in FIGURES.items()
        ]
        if any(cell != "–" for cell in cells):
            rows.append([f"model.{kind}", *cells])
    return html.table(["file", *(label for label, _ in FIGURES.values())], rows)


def light_and_print(events: Events) -> str:
    """What the last export found: the light in the colours, and the solid for printing.

    "" if it looked for neither.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event.get("kind") == "mesh":  # an export starts
            found = {}
        elif event.get("kind") in ("light", "print"):
            found[str(event["kind"])] = event
    rows = [
        [kind, key.replace("_", " "), str(value)]
        for kind, event in found.items()
        for key, value in event.items()
        if key not in ("kind", "time") and value != ""
    ]
    return html.table(["", "figure", "value"], rows, words=True)


def visual_prompt(run: RunFolder) -> str:
    """The candidates with their scores, the chosen one framed, and its cut-out.

    "" if the run has no visual prompt or its `scores.json` is damaged.
    """
    try:
        stored = read_json_object(run.visual_prompt / SCORES_FILE)
        scores = [None if score is None else float(score) for score in stored["scores"]]
        chosen, unstable = int(stored["chosen"]), list(stored.get("ragged", []))
    except (JsonError, ValueError, KeyError, TypeError):
        return ""
    cards = []
    for n, score in enumerate(scores):
        label = "could not be cut out" if score is None else f"reward {score:.3f}"
        label = f"{label} · unstable cut-out" if n in unstable else label
        framed = n == chosen and len(scores) > 1
        label = f"{label} · chosen" if framed else label
        cards.append(_png_card(run.visual_prompt / candidate_file(n), label, framed))
    cards.append(_png_card(run.visual_prompt / CUTOUT_FILE, "cut-out used as the visual prompt"))
    return html.tiles([card for card in cards if card])


def front_view(run: RunFolder, events: Events) -> str:
    """The grade of the front view against the visual prompt, and where they differ.

    A sentence for a run without a visual prompt; "" if the last export was not graded.
    """
    if not (run.visual_prompt / SCORES_FILE).is_file():
        return html.text("This run has no visual prompt, so there is nothing to compare with.")
    found = last_front_view(events)
    if found is None:
        return ""
    words, seconds = in_words(found["grade"]), found.get("seconds")
    if isinstance(seconds, float):
        words += f" The comparison took {seconds:.1f} s, after the asset was written."
    cards = [
        _png_card(run.visual_prompt / name, caption) for name, caption in FRONT_PICTURES.items()
    ]
    return html.text(words) + html.tiles([card for card in cards if card])


def _png_card(path: Path, caption: str, chosen: bool = False) -> str:
    """A PNG file on a card, embedded; "" if it does not exist."""
    if not path.is_file():
        return ""
    return html.picture(html.data_uri(path.read_bytes(), "image/png"), caption, chosen)


def eight_views(asset: Asset, camera: CameraConfig, events: Events) -> str:
    """The mesh from eight sides; a label adds the side that the prior confuses a view with."""
    views = ring_frames(asset.mesh, VIEWS, VIEW_SIZE, camera)
    labels = [view_words(azimuth, ELEVATION_DEG) for azimuth in AZIMUTHS]
    named = view_guesses(events).get("named", [])
    for k in np.flatnonzero(sector_distance(np.array(named, int), np.arange(len(named))) > 1):
        labels[k] += f" · recognised as {SECTORS[named[k]]}"
    cards = [
        html.picture(html.data_uri(png(view), "image/png"), label)
        for view, label in zip(views, labels, strict=True)
    ]
    return html.tiles(cards)


def png(picture: np.ndarray) -> bytes:
    """A picture `[H, W, 3]` uint8 sRGB as the bytes of a PNG."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", optimize=True)
    return out.getvalue()


def notes(events: Events) -> str:
    """A table of warnings and interruptions, one row an event; "" if there were none."""
    rows = [
        [str(event["kind"]).replace("_", " "), str(event.get("step", "")), _details(event)]
        for event in events
        if event["kind"] in LISTED_EVENTS
    ]
    return html.table(["event", "step", "details"], rows, words=True)


def _details(event: Mapping[str, Any]) -> str:
    """The message of an event, or its other data in words if it has no message."""
    rest = {name: value for name, value in event.items() if name not in ("time", "kind", "step")}
    if "message" in rest:
        return str(rest["message"])
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in rest.items())


def files(folder: Path) -> str:
    """The files of a run by name and size, as links relative to the run folder."""
    found = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.name != "report.html"
    )
    rows = []
    for path in found:
        size = max(1, path.stat().st_size // 1024)
        shown = escape(printable(path.name))
        link = f'<a href="{quote(os.fsencode(path.name))}">{shown}</a>'
        rows.append(f"<li>{link} {size:,} KiB</li>")
    return f"<ul>{''.join(rows)}</ul>" if rows else ""
