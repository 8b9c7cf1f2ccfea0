"""The report: self-contained, escaped, complete, and right about restarts and pauses."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image

from tests.helpers.assets import asset_of
from vp3d.config.loader import load_config
from vp3d.export.glb import write_glb
from vp3d.report.pictures import ring_frames
from vp3d.report.plots import curves, grouped, plot_svgs, write_plots
from vp3d.report.report import (
    files,
    notes,
    progress,
    time_spent,
    view_guesses,
    visual_prompt,
    write_report,
)
from vp3d.report.video import write_turntable
from vp3d.report.viewer import DISTANCE, first_view, viewer_page
from vp3d.runs.folder import RunFolder
from vp3d.system.files import write_json, write_text
from vp3d.types import Asset, Mesh

PROMPT = 'a <b>red</b> & "blue" cube'


class Page(HTMLParser):
    """Every tag with its attributes, and the text outside styles, scripts and SVG."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]


def pyramid() -> Mesh:
    vertices = 0.6 * np.array(
        [[1, 1, -1], [-1, 1, -1], [-1, -1, -1], [1, -1, -1], [0, 0, 1]], np.float32
    )
    faces = np.array([(0, 2, 1), (0, 3, 2), (0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4)])
    return Mesh(vertices, faces, vertex_colors=np.full((5, 3), 0.5, np.float32))


def log_steps(run: RunFolder) -> None:
    run.event("start", prompt=PROMPT)
    for step in range(5, 55, 5):
        values = {"loss": 9.0, "sds": 1.0 / step, "sparsity": 0.1, "samples": 1e5}
        values |= {"reward_text_image": step / 100, "opacity": 0.3}
        run.event("step", step=step, steps=60, **values)
    nan = {"loss": float("nan"), "sds": float("nan")}
    run.event("step", step=55, steps=60, **nan, sparsity=0.1, reward_text_image=0.5, opacity=0.3)
    run.event("warning", message="no video: <script>alert(1)</script>")


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], RunFolder]:
    def make() -> RunFolder:
        folder = tmp_path_factory.mktemp("out")
        return RunFolder.create(
            load_config(None, [], [f"prompt={PROMPT}", f"output_dir={folder}", "seed=7"])
        )

    return make


@pytest.fixture(scope="module")
def report(make_run: Callable[[], RunFolder]) -> Path:
    run, mesh = make_run(), pyramid()
    log_steps(run)
    for n in range(2):
        Image.new("RGB", (64, 64), (40 * n, 90, 90)).save(run.visual_prompt / f"candidate_{n}.png")
    Image.new("RGB", (64, 64), "white").save(run.visual_prompt / "cutout.png")
    write_json(run.visual_prompt / "scores.json", {"scores": [None, 0.25], "chosen": 1})
    write_glb(asset_of(mesh), run.path / "model.glb")
    write_turntable(ring_frames(mesh, 4, 32, run.config().camera), run.path / "turntable.mp4")
    figures = {"glb_iou": 0.987, "glb_psnr": 31.26, "stl_iou": 0.99}
    return write_report(run, Asset(PROMPT, mesh, run.path, figures))


def test_a_report_that_is_passed_on_names_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "secret place" / "runs"
    words = [f"output_dir={folder}", f"image={folder}/mug.png", f"prior.path={folder}/sd"]
    run = RunFolder.create(load_config(None, [], [f"prompt={PROMPT}", *words]))
    log_steps(run)
    run.event("warning", message=f"{folder}/x.png is odd, see {run.path}/events.jsonl")
    asset = Asset(PROMPT, pyramid(), run.path, {})
    write_glb(asset, run.path / "model.glb")
    text = write_report(run, asset).read_text(encoding="utf-8")
    for personal in (str(folder), "secret place", str(tmp_path), str(Path.home()) + "/"):
        assert personal not in text
    assert "mug.png" in text and "x.png is odd" in text and "path: sd" in text


def test_everything_is_inside_and_nothing_is_fetched(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    sources = [
        a.get("src")
        for tag in ("img", "video", "script", "iframe", "source")
        for a in page.all(tag)
    ]
    assert all(source is None or source.startswith("data:") for source in sources)
    assert not page.all("link")
    policy = next(
        a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None and "default-src 'none'" in policy and "http" not in policy
    assert [
        a["href"] for a in page.all("a") if not (report.parent / str(a["href"])).is_file()
    ] == []


def test_what_the_reader_sees(report: Path) -> None:
    page = Page(report.read_text(encoding="utf-8"))
    figures = ("0.987", "31.3 dB", "0.990", "reward 0.250 · chosen")
    for words in (PROMPT, "seed", "7", *figures, "back left view", "could not be cut out"):
        assert words in page.text
    assert "<script>alert(1)</script>" in page.text  # as text, not as a tag
    assert (
        len(page.all("video")) == 1 and len(page.all("iframe")) == 1 and len(page.all("svg")) == 3
    )
    assert len(page.all("img")) == 3 + 8
    data = str(page.all("video")[0]["src"]).split(",", 1)[1]
    assert base64.b64decode(data) == (report.parent / "turntable.mp4").read_bytes()
    assert "guidance_scale" in page.text and (report.parent / "plots.png").is_file()


def test_markup_from_outside_is_escaped(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert "<b>red</b>" not in text and "<script>alert(1)" not in text
    assert "a &lt;b&gt;red&lt;/b&gt; &amp; &quot;blue&quot; cube" in text


def test_the_viewer_survives_the_frame_and_holds_the_asset(report: Path) -> None:
    frame = Page(report.read_text(encoding="utf-8")).all("iframe")[0]
    inner = viewer_page(report.parent / "model.glb")
    assert frame["srcdoc"] == inner and frame["sandbox"] == "allow-scripts"
    assert "THREE" in inner and "sRGBEncoding" in inner
    assert not re.search(r"(src|href)\s*=\s*[\"']https?:", inner)
    encoded = re.search(r'base64_data="([^"]+)"', inner)
    assert encoded is not None and base64.b64decode(encoded[1])[:4] == b"glTF"


def test_first_view_looks_at_the_origin() -> None:
    pose = first_view()
    axes = pose[:3, :3]
    assert np.linalg.det(axes) == pytest.approx(1.0) and axes.T @ axes == pytest.approx(np.eye(3))
    assert pose[:3, 3] - DISTANCE * pose[:3, 2] == pytest.approx(np.zeros(3), abs=1e-9)
    assert pose[1, 1] > 0.9 and pose[2, 3] > 0  # up is up, and the camera is in front


def test_a_bare_run_still_gets_its_report(make_run: Callable[[], RunFolder]) -> None:
    run = make_run()
    page = Page(write_report(run, Asset(PROMPT, pyramid(), run.path)).read_text(encoding="utf-8"))
    assert (
        len(page.all("iframe")) == 1
        and len(page.all("img")) == 8
        and not page.all("video")
        and not page.all("svg")
    )
    assert "Visual prompt" not in page.text and not (run.path / "plots.png").exists()


def test_curves_break_at_restarts_and_holes(tmp_path: Path) -> None:
    logged = [(5, 1.0), (10, "nan"), (15, 2.0), (5, 3.0)]
    rest = {
        "sds": 9.0,
        "x": -0.1,
        "smoothness": 0.0,
        "reward_x": 0.1,
        "opacity": 0.2,
        "loss": 1.0,
        "eta_s": 3,
    }
    events = [{"kind": "step", "step": s, "sparsity": v, **rest} for s, v in logged]
    found = curves([{"kind": "start"}, *events])
    steps, values = found["sparsity"]
    assert steps.tolist() == [5, 10, 15, 5, 5]
    assert values.tolist() == pytest.approx([1.0, np.nan, 2.0, np.nan, 3.0], nan_ok=True)
    plots = {title: list(group) for title, group in grouped(found).items()}
    assert plots == {"Rewards": ["x"], "Opacity": ["opacity"], "Losses": ["sparsity"]}, "no raw SDS"
    assert plot_svgs(events) == plot_svgs(events) and all(
        "currentColor" in svg for svg in plot_svgs(events).values()
    )
    assert not write_plots([], tmp_path / "plots.png") and not (tmp_path / "plots.png").exists()


def test_steps_and_second_faces_are_those_of_the_mesh_that_is_there() -> None:
    events = [
        {"kind": "step", "step": 150},
        {"kind": "restart", "step": 152},
        {"kind": "step", "step": 5},
    ]
    assert progress(400, []) == {"steps": "0 of 400"}
    assert progress(400, events)["steps"] == "5 of 400"
    stopped = [*events, {"kind": "stopped", "step": 8, "steps": 400}, {"kind": "export"}]
    assert progress(400, stopped)["steps"] == "8 of 400" and not view_guesses(stopped)
    assert "refine steps" not in progress(400, stopped)
    refined = [
        {"kind": "step", "step": 400},
        {"kind": "refine_step", "step": 5, "steps": 90},
        {"kind": "refine_stopped", "step": 7, "steps": 90},
    ]
    both = {"steps": "400 of 400", "refine steps": "7 of 90"}
    assert progress(400, refined) == both, "each stage counts its own"
    judged = [*stopped, {"kind": "views", "janus": 0.5, "view_agreement": 1, "named": []}]
    judged.append({"kind": "start"})
    assert view_guesses(judged)["janus"] == 0.5
    assert not view_guesses([*judged, {"kind": "export"}]), "re-exported: another mesh"


def test_interruptions_of_both_stages_are_listed() -> None:
    events = [
        {"kind": "refine_stopped", "step": 61, "steps": 90},
        {"kind": "refine_step", "step": 62},
        {"kind": "resume", "step": 63, "file": "00000063.safetensors"},
    ]
    table = notes(events)
    assert "refine stopped" in table and "61" in table and "63" in table and "62" not in table


def test_time_leaves_pauses_out() -> None:
    events = [
        {"time": t, "kind": k}
        for t, k in ((10, "start"), (15, "step"), (1000, "start"), (1002, "step"), (1003, "done"))
    ]
    assert time_spent(events) == 8.0


NAMES = (
    b"note\xff.txt",
    b"\xfe\xff",
    b"caf\xe9.png",
    b"a b&c<d>.txt",
    b"100%.txt",
    b"#?.txt",
    b"\xc3(.txt",
)


def test_names_of_files_are_bytes(tmp_path: Path) -> None:
    """Each link leads back to the bytes of the name, whatever they are."""
    for name in NAMES:
        (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    page = files(tmp_path)
    write_text(tmp_path / "page.html", page)
    links = re.findall('href="([^"]*)"', page)
    assert {unquote_to_bytes(link) for link in links} == set(NAMES)
    assert "note\\xff.txt" in page and "a b&amp;c&lt;d&gt;.txt" in page


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"janus": "x", "view_agreement": 1.0, "named": []},
        {"janus": 0.5, "view_agreement": None, "named": []},
        {"janus": 0.5, "view_agreement": 0.5, "named": "01234567"},
        {"janus": 0.5, "view_agreement": 0.5, "named": [8]},
        {"janus": 0.5, "view_agreement": 0.5, "named": [-1]},
        {"janus": 0.5, "view_agreement": 0.5, "named": [0.0]},
        {"janus": 0.5, "view_agreement": 0.5, "named": [0] * 9},
    ],
)
def test_a_damaged_guess_of_views_counts_as_none(event: dict[str, Any]) -> None:
    assert not view_guesses([{"kind": "views", "time": 1.0, **event}])


def test_an_event_without_its_step_is_left_out() -> None:
    events = [{"kind": "step", "step": 3, "time": 1.0}, {"kind": "stopped", "time": 2.0}]
    assert progress(9, events)["steps"] == "3 of 9"


@pytest.mark.parametrize("text", ["[" * 200_000, "[]", '{"scores": 1, "chosen": 0}', "\xff"])
def test_damaged_scores_leave_the_visual_prompt_out(text: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.visual_prompt.mkdir()
    (run.visual_prompt / "scores.json").write_text(text, encoding="latin-1")
    assert visual_prompt(run) == ""


def test_time_begins_with_the_process_or_the_call_and_not_when_the_models_are_loaded() -> None:
    steps = [{"time": 15, "kind": "step"}, {"time": 19, "kind": "done"}]
    called = {"time": 10, "kind": "start", "called": 7.5, "process_started": None}
    assert time_spent([called, *steps]) == 11.5
    assert time_spent([called | {"process_started": 4.0}, *steps]) == 15.0
    resumed = {"time": 1000, "kind": "start", "called": 999, "process_started": 996}
    again = [*steps, resumed, {"time": 1002, "kind": "done"}]
    assert time_spent([called | {"process_started": 4.0}, *again]) == 21.0
    ahead = called | {"process_started": 12.0}  # a clock that was set back
    assert time_spent([ahead, *steps]) == 9.0
