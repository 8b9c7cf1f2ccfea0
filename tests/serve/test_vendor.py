"""The page's optional viewer: only the pinned file is taken, and the page then uses it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile

import pytest

from vp3d.errors import UserError
from vp3d.serve import pages, vendor

pytest.importorskip("fastapi", reason="needs the extra `serve`: pip install 'vp3d[serve]'")
SCRIPT = b"customElements.define('model-viewer', class extends HTMLElement {});"
PINNED = dataclasses.replace(vendor.MODEL_VIEWER, sha512=hashlib.sha512(SCRIPT).hexdigest())


def package(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as packed:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def test_the_pinned_file_is_written_with_its_licence(tmp_path):
    archive = package(**{PINNED.member: SCRIPT, "LICENSE": b"Apache", "other.js": b"x"})
    vendor.unpack(archive, PINNED, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["model-viewer.min.js", "model-viewer.min.js.LICENSE"]
    assert vendor.fetch(PINNED, tmp_path) == tmp_path / PINNED.name  # it is there: no npm


@pytest.mark.parametrize(
    "archive",
    [
        package(**{PINNED.member: SCRIPT + b" ", "LICENSE": b"Apache"}),
        package(**{PINNED.member: SCRIPT}),
        b"no archive",
    ],
)
def test_another_file_is_refused_and_nothing_is_written(archive, tmp_path):
    with pytest.raises(UserError):
        vendor.unpack(archive, PINNED, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_npm_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(vendor.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="npm is not installed"):
        vendor.fetch(PINNED, tmp_path)


def test_the_page_uses_model_viewer_only_if_it_is_the_pinned_one(monkeypatch, tmp_path):
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    monkeypatch.setattr(pages, "MODEL_VIEWER", PINNED)
    (tmp_path / PINNED.name).write_bytes(b"another")
    files = pages.page_files()
    assert pages.viewer_of(files) == "three.js"
    assert files["index.html"].policy == ""
    (tmp_path / PINNED.name).write_bytes(SCRIPT)
    files = pages.page_files()
    assert pages.viewer_of(files) == "model-viewer 4.4.0"
    assert "script-src 'self' 'wasm-unsafe-eval';" in files["index.html"].policy


def test_what_is_vendored_here_is_the_pinned_version():
    path = vendor.FOLDER / vendor.MODEL_VIEWER.name
    if not path.is_file():
        pytest.skip("nothing is vendored here; `make vendor` does")
    assert vendor.MODEL_VIEWER.is_whole(path.read_bytes())
