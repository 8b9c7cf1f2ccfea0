"""The page in a headless Chromium: what a person does, with every request and message counted.

Skipped without playwright or without a Chromium (Debian: `apt-get install chromium`).
`make vendor` fetches axe-core, which then checks every view. VP3D_SCREENSHOTS=DIR keeps a picture
of each view, VP3D_FLOWS=FILE counts of requests and messages (`tests.serve.soak flows` reads it).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.service import ROOT, TINY, RunningService

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("fastapi", reason="needs the extra `serve`: pip install 'vp3d[serve]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]
OPTIONS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
AXE = ROOT / "tests" / "serve" / "vendor" / "axe.min.js"
COUNTS: Counter[str] = Counter()  # over all flows
LONG_S = 1_000_000  # of a wait for something that a worker does, milliseconds
SLOW = {**TINY, "optim.steps": 3000}


class Tab:
    """A page that fails its test for any error message or foreign request."""

    def __init__(self, page, url: str) -> None:
        self.page, self.url = page, url
        self.faults: list[str] = []
        self.expected: re.Pattern[str] | None = None
        page.on("console", self._message)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", self._request)

    def _message(self, message) -> None:
        text = message.text
        if message.type != "error":
            return
        if self.expected and self.expected.search(text):
            COUNTS["expected errors"] += 1
            return
        COUNTS["console errors"] += 1
        self.faults.append(text)

    def _request(self, request) -> None:
        COUNTS["requests"] += 1
        if not request.url.startswith((self.url, "blob:", "data:")):
            COUNTS["foreign requests"] += 1
            self.faults.append(f"foreign request {request.url}")

    def open(self, address: str = "#/") -> None:
        self.page.goto(f"{self.url}/{address}")

    def check(self, name: str) -> None:
        """Take a screenshot and run axe-core, where they are asked for."""
        folder = os.environ.get("VP3D_SCREENSHOTS")
        if folder:
            time.sleep(0.5)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))
        if AXE.is_file():
            # CSP forbids added scripts; evaluate runs outside of it
            self.page.evaluate(AXE.read_text(encoding="utf-8"))
            found = self.page.evaluate("async () => (await axe.run()).violations")
            bad = [
                f"{one['id']}: {one['nodes'][0]['html'][:120]}"
                for one in found
                if one["impact"] in ("serious", "critical")
            ]
            COUNTS["views with axe-core"] += 1
            COUNTS["serious by axe-core"] += len(bad)
            self.faults += bad


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_api.sync_playwright() as play:
        running = play.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield running
        running.close()
    if "VP3D_FLOWS" in os.environ:
        Path(os.environ["VP3D_FLOWS"]).write_text(json.dumps(COUNTS))


@pytest.fixture
def tab(browser, working: RunningService) -> Iterator[Tab]:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    found = Tab(context.new_page(), working.url)
    yield found
    context.close()
    assert found.faults == []


@pytest.fixture(scope="module")
def done(working: RunningService):
    """Two finished jobs."""
    client = working.client()
    settings = {**TINY, "export.turntable": "mp4"}
    return [
        client.submit(prompt, preset="draft", settings=settings).wait()
        for prompt in ("a red cube", "a blue mug")
    ]


def submit(working: RunningService, **request):
    settings = {**TINY, **request.pop("settings", {})}
    return working.client().submit("a red cube", preset="draft", settings=settings, **request)


def test_a_wrong_word_is_named_and_fixed(tab):
    tab.open()
    began = time.monotonic()
    tab.page.fill("#prompt", "a red mushrom")
    tab.page.wait_for_selector("#fixes button")
    assert "mushrom" in tab.page.inner_text("#verdict")
    tab.check("make")
    tab.page.click("#fixes button")
    tab.page.wait_for_function(
        "() => document.getElementById('verdict').textContent.startsWith('Every word')"
    )
    assert tab.page.input_value("#prompt") == "a red mushroom"
    assert time.monotonic() - began < 10


def test_the_first_view_is_small_and_quick(tab):
    sizes = []
    tab.page.on("response", lambda reply: sizes.append(len(reply.body()) if reply.ok else 0))
    began = time.monotonic()
    tab.open()
    tab.page.wait_for_selector("#prompt")
    assert time.monotonic() - began < 5  # loopback, on a machine that is busy
    assert sum(sizes) < 400_000


def test_a_picture_is_chosen_and_becomes_3d(tab, working):
    job = submit(working, choose="ask", settings={"visual_prompt.candidates": 4})
    tab.open(f"#/job/{job.id}")
    tab.page.wait_for_selector("button[data-candidate]", timeout=LONG_S)
    tab.check("choose")
    assert tab.page.inner_text("#again") == "Draw others"
    buttons = tab.page.locator("button[data-candidate]")  # those that can be cut out
    button = buttons.nth(min(2, buttons.count() - 1))
    chosen = int(button.get_attribute("data-candidate"))
    button.click()
    tab.page.wait_for_selector("#export", timeout=LONG_S)
    assert job.refresh().data["choice"] == chosen


def test_the_live_view_changes_and_survives_a_reload_and_is_kept(tab, working):
    job = submit(working, settings=SLOW)
    tab.open(f"#/job/{job.id}")
    changed = "() => Number(document.querySelector('.viewer')?.dataset.changes) >= 3"
    tab.page.wait_for_function(changed, timeout=LONG_S)
    tab.check("live")
    tab.page.reload()
    tab.page.wait_for_selector(".stages .now", timeout=LONG_S)
    assert tab.page.inner_text("h1") == "a red cube"
    tab.page.click("#keep", timeout=LONG_S)
    tab.page.wait_for_selector("#export", timeout=LONG_S)
    assert "stopped early" in tab.page.inner_text("#status")


def test_a_download_has_the_hash_that_is_shown(tab, done, tmp_path):
    tab.open(f"#/job/{done[0].id}")
    tab.page.wait_for_selector(".viewer[data-changes]", timeout=LONG_S)
    tab.page.wait_for_selector("a[download='model.glb']")
    tab.check("result")
    looks = tab.page.locator("[role=group] button")
    for n in range(looks.count()):
        looks.nth(n).click()
    looks.first.click()
    with tab.page.expect_download() as download:
        tab.page.click("a[download='model.glb']")
    download.value.save_as(tmp_path / "model.glb")
    digest = hashlib.sha256((tmp_path / "model.glb").read_bytes()).hexdigest()
    listed = {one["name"]: one["sha256"] for one in done[0].artifacts()}
    assert digest == listed["model.glb"]


def test_the_front_view_is_shown_beside_the_picture(tab, done):
    tab.open(f"#/job/{done[0].id}")
    tab.page.wait_for_selector(".front img")
    assert tab.page.locator(".front img").count() == 3
    assert "Right assets of the embedded models have" in tab.page.inner_text("main")
    tab.page.wait_for_function(
        "() => [...document.querySelectorAll('.front img')].every(one => one.naturalWidth > 0)"
    )
    tab.check("front view")


def test_another_export_from_the_page(tab, done):
    tab.open(f"#/job/{done[0].id}")
    tab.page.fill("#faces", "2000", timeout=LONG_S)
    tab.page.check("#export input[value=usdz]")
    tab.page.fill("#millimetres", "50")
    tab.page.check("#levels")
    tab.page.click("#export button")
    tab.page.wait_for_url(lambda url: done[0].id not in url)
    tab.page.wait_for_selector("a[download='model.usdz']", timeout=LONG_S)
    assert tab.page.locator("a[download='model_lod1.glb']").count() == 1


def test_compare_moves_the_cameras_together(tab, done):
    tab.open("#/gallery")
    for job in done:
        title = job.data["request"]["prompt"]
        tab.page.locator(f".tile:has(a[href='#/job/{job.id}']) input").check()
        assert title
    tab.check("gallery")
    tab.page.click("#compare")
    tab.page.wait_for_function(
        "() => document.querySelectorAll('.viewer[data-changes]').length === 2", timeout=LONG_S
    )
    tab.check("compare")
    first, second = (tab.page.locator(".viewer").nth(n) for n in range(2))
    before = second.screenshot()
    first.locator("canvas[tabindex], .userInput").focus()  # of ours, of model-viewer
    for _ in range(5):
        tab.page.keyboard.press("ArrowRight")
    tab.page.wait_for_timeout(1000)
    assert second.screenshot() != before


def test_a_job_is_deleted_from_its_page(tab, working):
    job = submit(working)
    job.wait()
    tab.page.on("dialog", lambda dialog: dialog.accept())
    tab.open(f"#/job/{job.id}")
    tab.page.click("#delete", timeout=LONG_S)
    tab.page.wait_for_url("**/#/gallery")
    tab.page.wait_for_selector("#search")
    assert tab.page.locator(f"a[href='#/job/{job.id}']").count() == 0


def test_a_killed_server_does_not_end_the_view(tab, working):
    job = submit(working, settings={"optim.steps": 60})
    tab.open(f"#/job/{job.id}")
    tab.page.wait_for_selector(".stages .now", timeout=LONG_S)
    tab.expected = re.compile("ERR_(CONNECTION_RE|INCOMPLETE|EMPTY)")
    working.kill()
    working.start()
    tab.page.wait_for_selector("#export", timeout=LONG_S)
    assert job.refresh().status == "succeeded"


def test_a_wrong_token_is_said_and_the_right_one_opens(browser, service):
    first = Tab(browser.new_page(), service.url)
    first.expected = re.compile("status of 401")
    first.open("#/gallery")
    first.page.fill("#token", "wrong wrong wrong")
    first.page.click("text=Continue")
    first.page.wait_for_selector("[role=alert]:not(:empty)")
    first.check("token")
    first.page.fill("#token", service.token)
    first.page.click("text=Continue")
    first.page.wait_for_selector("#search")
    other = Tab(browser.new_page(), service.url)
    other.open(f"#token={service.token.replace(' ', '%20')}")
    other.page.wait_for_selector("#prompt")
    assert service.token not in other.page.url
    assert first.faults == other.faults == []
    first.page.close()
    other.page.close()


def test_a_telephone_and_the_dark(browser, working, done):
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
    phone = Tab(context.new_page(), working.url)
    for name, address in (("phone", f"#/job/{done[0].id}"), ("phone_make", "#/"), ("q", "#/queue")):
        phone.open(address)
        phone.page.wait_for_selector("h1")
        phone.page.wait_for_timeout(800)
        wide = phone.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390
        phone.check(name)
    assert phone.faults == []
    context.close()


def test_the_keyboard_reaches_the_prompt_and_submits(tab):
    tab.open()
    tab.page.wait_for_selector("#prompt")
    for _ in range(12):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate("document.activeElement.id") == "prompt":
            break
    tab.page.keyboard.type("a green cactus")
    for _ in range(12):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate("document.activeElement.id") == "auto":
            break
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("#cancel", timeout=LONG_S)
    tab.page.click("#cancel")
    tab.page.wait_for_selector("#again", timeout=LONG_S)
