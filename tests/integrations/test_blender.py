"""The Blender add-on, installed from its zip into a headless Blender, against a real service."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.service import ROOT, TINY, RunningService

pytest.importorskip("fastapi", reason="needs the extra `serve`: pip install 'vp3d[serve]'")
BLENDER = shutil.which("blender")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BLENDER is None, reason="needs Blender")]

SCRIPT = """
import json, sys, time
import addon_utils, bpy
url, token_file, extra, archive = json.loads(sys.argv[sys.argv.index("--") + 1])
bpy.ops.preferences.addon_install(filepath=archive)
bpy.ops.preferences.addon_enable(module="vp3d_blender")
import vp3d_blender
settings = bpy.context.scene.vp3d
settings.prompt, settings.url, settings.token_file = "a red cube", url, token_file
before = set(bpy.data.objects)
print("SUBMIT", bpy.ops.vp3d.submit(extra=extra))
end = time.monotonic() + 240
while vp3d_blender.look() is not None and time.monotonic() < end:
    time.sleep(0.1)
added = [one for one in set(bpy.data.objects) - before if one.type == "MESH"]
print("RESULT", json.dumps({
    "message": settings.message, "progress": settings.progress,
    "names": [one.name for one in added], "faces": [len(one.data.polygons) for one in added],
    "textured": [any(n.type == "TEX_IMAGE" for m in one.data.materials for n in m.node_tree.nodes)
                 for one in added],
}))
"""


def test_the_add_on_imports_the_asset_of_a_prompt(tmp_path):
    archive = tmp_path / "vp3d_blender.zip"
    subprocess.run(
        [sys.executable, "integrations/blender/make_zip.py", archive], check=True, cwd=ROOT
    )
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    token = "a token of the tests"
    (tmp_path / "token").write_text(token)
    with RunningService(tmp_path / "data", workers=1, token=token) as service:
        extra = json.dumps({"settings": TINY})
        given = json.dumps([service.url, str(tmp_path / "token"), extra, str(archive)])
        done = subprocess.run(
            [BLENDER, "--background", "--factory-startup", "--python", str(script), "--", given],
            capture_output=True,
            text=True,
            timeout=280,
            env={**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")},
        )
    line = next((row for row in done.stdout.splitlines() if row.startswith("RESULT ")), None)
    assert line is not None, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(line.removeprefix("RESULT "))
    assert found["message"] == "imported"
    assert found["names"] == ["a red cube"]
    assert found["textured"] == [True]
    assert 0 < found["faces"][0] <= 300


def test_the_client_of_the_add_on_needs_only_the_standard_library():
    text = (ROOT / "vp3d" / "client.py").read_text()
    names = {
        line.split()[1].split(".")[0]
        for line in text.splitlines()
        if line.startswith(("import ", "from "))
    }
    assert names <= set(sys.stdlib_module_names) | {"__future__"}
    assert Path(ROOT / "integrations" / "blender" / "README.md").is_file()
