"""The page's files: the gallery's view of a contact sheet, and modules that all exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.helpers.service import ROOT
from vp3d.report.pictures import sheet

pytest.importorskip("fastapi", reason="needs the extra `serve`: pip install 'vp3d[serve]'")
STATIC = ROOT / "vp3d" / "serve" / "static"
SIDE, LABEL = 320, 17  # pixels of a view of preview.png, and of the text below it


def test_the_gallery_shows_the_second_view_of_the_contact_sheet():
    rule = re.search(r"\.sheet \{([^}]*)\}", (STATIC / "page.css").read_text())
    assert rule is not None
    share = {name: float(value) / 100 for name, value in re.findall(r"(\w+): (-?[\d.]+)%", rule[1])}
    tiles = [Image.new("RGB", (SIDE, SIDE + 2 * LABEL), (10, 10, 10)) for _ in range(8)]
    tiles[1] = Image.new("RGB", tiles[1].size, (255, 0, 0))
    page = sheet([tiles[:4], tiles[4:]], "a title")
    scale = page.width / (share["width"] * SIDE)  # pixels of the sheet for one of the tile
    left, top = -share["left"] * SIDE * scale, -share["top"] * SIDE * scale
    shown = page.crop((round(left), round(top), round(left + SIDE), round(top + SIDE)))
    assert scale == pytest.approx(1.0, abs=0.002)
    assert (np.asarray(shown) == (255, 0, 0)).all(axis=-1).mean() > 0.99


ASKS = """
let asked = 0;
globalThis.window = new EventTarget();
const status = () => (asked === 4 ? 503 : 200);
globalThis.fetch = async () => Response.json({ asked: ++asked }, { status: status() });
const { info } = await import("./api.mjs");
const found = [];
for (const again of [false, false, true, false, true, true, false, true])
  found.push(await info(again).then((one) => one.asked, (error) => error.status));
console.log(JSON.stringify(found));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_what_the_service_is_is_asked_again_where_it_may_have_changed(tmp_path):
    shutil.copy(STATIC / "api.js", tmp_path / "api.mjs")
    (tmp_path / "asks.mjs").write_text(ASKS)
    done = subprocess.run(["node", "asks.mjs"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stderr, json.loads(done.stdout)) == ("", [1, 1, 2, 2, 3, 503, 5, 6])
    assert "info(true)" in (STATIC / "make.js").read_text()  # the list of profiles


def test_every_module_that_is_imported_or_preloaded_exists():
    names = {path.name for path in STATIC.iterdir() if path.is_file()}
    text = "".join(path.read_text(encoding="utf-8") for path in STATIC.glob("*.js"))
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    imported = set(re.findall(r'from "\./(\w+\.js)"', text))
    preloaded = set(re.findall(r'modulepreload" href="/static/(\w+\.js)"', page))
    assert imported == preloaded <= names
