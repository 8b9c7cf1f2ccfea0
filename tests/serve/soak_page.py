"""Figures of the page in a headless Chromium: B1 to B5 and B7 of `python -m tests.serve.soak`."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.helpers.service import ROOT, TINY, RunningService
from tests.serve.soak_jobs import until
from vp3d.client import Job

OPTIONS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
FLOWS = 12
FIRST_BYTES, FIRST_S = 400_000, 1.0  # B4
SHOWN_S, PREVIEW_COST = 2.0, 0.03  # B5
WAIT_MS = 1_800_000.0
VIEWS = ("make", "choose", "live", "result", "gallery", "compare", "phone")  # B7
PROMPTS = ("a red mushroom with a white stem", "a blue mug with a yellow handle", "a green cactus")


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's Chromium without a window."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=OPTIONS)
        yield browser
        browser.close()


def flows(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """B1, B2, B3: the tests of the page, with their requests, messages and axe-core's findings."""
    results, counts = root / "junit.xml", root / "counts.json"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", "tests/serve/test_browser.py"]
    done = subprocess.run(
        [*command, f"--junitxml={results}"],
        cwd=ROOT,
        env={**os.environ, "VP3D_FLOWS": str(counts)},
        capture_output=True,
        text=True,
    )
    suite = ElementTree.parse(results).getroot().find("testsuite")
    assert suite is not None
    numbers = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors")}
    skipped = int(suite.get("skipped", "0"))
    found = json.loads(counts.read_text()) if counts.is_file() else {}
    zero = ("foreign requests", "console errors", "serious by axe-core")
    failed = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.M)
    return {
        **numbers,
        "skipped": skipped,
        **{name: found.get(name, 0) for name in (*found, *zero)},
        "failed": failed,
        "ok": done.returncode == 0
        and numbers["tests"] - skipped >= FLOWS
        and found.get("views with axe-core", 0) > 0
        and not any(found.get(name, 0) for name in zero),
    }


def first_view(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """B4: bytes as sent and seconds until the prompt can be typed, each time in a new browser."""
    seconds, sizes = [], []
    with RunningService(root / "data") as service, chromium() as browser:
        for _ in range(arguments.opens):
            context = browser.new_context()
            page = context.new_page()
            session = context.new_cdp_session(page)
            session.send("Network.enable")
            received: list[float] = []
            session.on(
                "Network.loadingFinished", lambda e, r=received: r.append(e["encodedDataLength"])
            )
            began = time.monotonic()
            page.goto(f"{service.url}/")
            page.wait_for_selector("#prompt")
            seconds.append(time.monotonic() - began)
            page.wait_for_load_state("networkidle")
            sizes.append(sum(received))
            context.close()
    middle = statistics.median(seconds[1:] or seconds)
    return {
        "opens": arguments.opens,
        "bytes": int(max(sizes)),
        "first_s": round(seconds[0], 2),
        "median_s": round(middle, 2),
        "ok": 0 < max(sizes) <= FIRST_BYTES and middle <= FIRST_S,
    }


def previews(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """B5: from the event of a live mesh to its picture, and the share of a run that meshes take."""
    settings = {**({} if arguments.full else TINY), "optim.steps": arguments.preview_steps}
    shown: dict[int, float] = {}
    with RunningService(root / "data", workers=1) as service, chromium() as browser:
        page = browser.new_page()
        client = service.client()
        job = client.submit("a red cube", preset="draft", settings=settings)
        page.goto(f"{service.url}/#/job/{job.id}")
        page.wait_for_selector(".viewer")
        while job.refresh().status not in ("succeeded", "failed", "cancelled"):
            data = page.evaluate("({...document.querySelector('.viewer').dataset})")
            event = re.search(r"preview\.glb\?v=e(\d+)$", data.get("shown", ""))
            if event:
                shown[int(event.group(1))] = float(data["shownAt"]) / 1000
            time.sleep(0.1)
        lines = (service.data / "jobs" / job.id / "events.jsonl").read_text().splitlines()
    logged = [json.loads(line)["time"] for line in lines]
    delays = [at - logged[number - 1] for number, at in shown.items()]
    cost = preview_cost(settings, root)
    return {
        "previews": len(delays),
        "longest_s": round(max(delays), 2) if delays else None,
        "median_s": round(statistics.median(delays), 2) if delays else None,
        "share_of_run": round(cost, 4),
        "ok": len(delays) >= 3 and max(delays) <= SHOWN_S and cost <= PREVIEW_COST,
    }


def preview_cost(settings: dict[str, Any], root: Path) -> float:
    """The share of a run's seconds in which live meshes are extracted and written."""
    from unittest import mock

    from vp3d import finish, generate, load_config
    from vp3d.runs.events import Watch

    spent = 0.0
    write = finish.LiveMesh.__call__

    def timed(live: finish.LiveMesh, stage: Any) -> None:
        nonlocal spent
        began = time.monotonic()
        write(live, stage)
        spent += time.monotonic() - began

    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    overrides.append(f"output_dir={root / 'alone'}")
    config = load_config("draft", overrides=overrides, prompt="a red cube")
    began = time.monotonic()
    with mock.patch.object(finish.LiveMesh, "__call__", timed):
        generate(config, watch=Watch(live_mesh=True))
    return spent / (time.monotonic() - began)


def pictures(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """B7: the seven screenshots of the documentation, from drafts; a person then looks at them."""
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    data = Path(arguments.data) if arguments.data else root / "data"
    with RunningService(data, workers=1) as service, chromium() as browser:
        client = service.client()
        jobs = [
            client.submit(
                prompt, preset="draft", key=f"picture {prompt}", settings=arguments.settings
            )
            for prompt in PROMPTS
        ]
        for job in jobs:
            job.wait()
        shoot(browser, service, out, jobs, arguments.settings)
    sizes = {name: (out / f"serve_{name}.png").stat().st_size for name in VIEWS}
    return {"folder": str(out), "bytes": sizes, "ok": min(sizes.values()) > 10_000}


def shoot(
    browser: Any, service: RunningService, out: Path, jobs: list[Job], settings: dict[str, Any]
) -> None:
    """Take the screenshots: desktop and light, the telephone dark."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)

    def keep(name: str, tab: Any = page) -> None:
        tab.wait_for_timeout(1500)
        tab.screenshot(path=str(out / f"serve_{name}.png"))

    page.goto(f"{service.url}/")
    page.fill("#prompt", "a red mushrom with a white stem")
    page.wait_for_selector("#fixes button")
    keep("make")
    page.goto(f"{service.url}/#/job/{jobs[0].id}")
    page.wait_for_selector(".viewer[data-changes]")
    keep("result")
    page.goto(f"{service.url}/#/compare/{jobs[0].id},{jobs[1].id}")
    page.wait_for_function("() => document.querySelectorAll('.viewer[data-changes]').length === 2")
    keep("compare")
    client = service.client()
    asked = client.submit("a yellow chair with red legs", preset="draft", choose="ask")
    until(lambda: asked.refresh().status == "awaiting_choice")
    page.goto(f"{service.url}/#/job/{asked.id}")
    page.wait_for_selector("button[data-candidate]")
    keep("choose")
    live = client.submit(
        "a red sphere on a blue cube", preset="draft", settings={"optim.steps": 400}
    )
    page.goto(f"{service.url}/#/job/{live.id}")
    page.wait_for_function("() => Number(document.querySelector('.viewer')?.dataset.changes) >= 2")
    keep("live")
    live.cancel()
    page.goto(f"{service.url}/#/gallery")
    page.wait_for_selector(".tile")
    keep("gallery")
    phone = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    small = phone.new_page()
    small.goto(f"{service.url}/#/job/{jobs[0].id}")
    small.wait_for_selector(".viewer[data-changes]")
    keep("phone", small)
    asked.cancel()


COMMANDS = {
    "flows": ("B1 B2 B3", flows),
    "first": ("B4", first_view),
    "previews": ("B5", previews),
    "pictures": ("B7", pictures),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of these commands."""
    parser.add_argument("--opens", type=int, default=6, help="first: how often the page is opened")
    parser.add_argument("--preview-steps", type=int, default=400, help="previews: steps of the run")
    parser.add_argument("--out", default="docs/how_to/images", help="pictures: where they go")
    parser.add_argument("--data", default="", help="pictures: a data folder to keep and use again")
    parser.add_argument(
        "--settings", type=json.loads, default={}, help="pictures: settings of the drafts, JSON"
    )
