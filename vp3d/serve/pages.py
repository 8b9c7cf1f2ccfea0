"""The web page: our own files, and a viewer that somebody else has written.

No third-party code is in the repository. trimesh's viewer (MIT) contains three.js (MIT) and its
GLTF loader; they are cut out of its template when the service starts, without importing trimesh.
Where vendor.py has fetched model-viewer, the page uses that.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from vp3d.errors import UserError
from vp3d.serve.guards import VIEWER_POLICY
from vp3d.serve.vendor import FOLDER, MODEL_VIEWER

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
SCRIPT_START = "/**\n * @license"
LOADER_END = "THREE.GLTFLoader=GLTFLoader;})();"  # what follows is the viewer of trimesh itself


@dataclass(frozen=True)
class PageFile:
    """One file of the page, as it is and compressed."""

    content: bytes
    packed: bytes
    media_type: str
    tag: str
    policy: str = ""  # Content-Security-Policy; "" for that of all answers

    @classmethod
    def of(cls, content: bytes, suffix: str) -> PageFile:
        """The file of a content; `suffix` decides its type."""
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return cls(content, gzip.compress(content, 9, mtime=0), TYPES[suffix], tag)

    def respond(self, request: Request) -> Response:
        """The file, compressed where the browser can read that."""
        headers = {"ETag": self.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        headers |= {"Content-Security-Policy": self.policy} if self.policy else {}
        if self.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        content = self.content
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"], content = "gzip", self.packed
        return Response(content, headers=headers, media_type=self.media_type)


def page_files() -> dict[str, PageFile]:
    """The files of the page by name, with `three.js` and model-viewer where they are there."""
    found = {
        path.name: PageFile.of(path.read_bytes(), path.suffix)
        for path in sorted(STATIC.iterdir())
        if path.suffix in TYPES
    }
    script = three_script()
    fetched = FOLDER / MODEL_VIEWER.name
    if fetched.is_file() and MODEL_VIEWER.is_whole(data := fetched.read_bytes()):
        found[fetched.name] = PageFile.of(data, fetched.suffix)
        found["index.html"] = replace(found["index.html"], policy=VIEWER_POLICY)
    return found | ({"three.js": PageFile.of(script, ".js")} if script else {})


def viewer_of(files: dict[str, PageFile]) -> str:
    """The viewer that the page uses, for people; "" if there is none."""
    if MODEL_VIEWER.name in files:
        return f"model-viewer {MODEL_VIEWER.version}"
    return "three.js" if "three.js" in files else ""


def three_script() -> bytes:
    """three.js with its GLTF loader; empty if the installed trimesh has another viewer."""
    spec = importlib.util.find_spec("trimesh")
    if spec is None or spec.origin is None:
        raise UserError("trimesh is not installed: install VP3D again")
    archive = Path(spec.origin).parent / "resources" / "templates" / "viewer.zip"
    try:
        with zipfile.ZipFile(archive) as packed:
            text = packed.read("viewer.html.template").decode("utf-8")
    except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError):
        return b""
    start, end = text.find(SCRIPT_START), text.find(LOADER_END)
    if start < 0 or end < 0:
        return b""
    return text[start : end + len(LOADER_END)].encode("utf-8")
