"""A small http server on the loopback: ranges, ETags, faults, and the hub's file addresses.

    with Server({"base/a.txt": b"..."}) as server: urlopen(server.url + "/base/a.txt")

A hub file `OWNER/NAME/resolve/REVISION/PATH` is a file of that name; its ETag is its SHA-256, as
for large files of the hub.
"""

from __future__ import annotations

import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """Serves `files`, with faults on request.

    `cut[path] = n` breaks the connection after n bytes, once; `status[path] = 403` answers with an
    error; `raw[path]` is sent instead of status line, headers and body.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.cut: dict[str, int] = {}
        self.status: dict[str, int] = {}
        self.raw: dict[str, bytes] = {}
        self.codes: dict[str, str] = {}  # the hub's X-Error-Code for a path
        self.ranges: list[tuple[str, str]] = []  # (path, Range header) of every GET
        self.tokens: list[str] = []  # Authorization header of every request
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def url(self) -> str:
        """The address, without a slash at its end."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Server:
        Thread(target=lambda: self.server.serve_forever(0.01), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                outer.ranges.append((self.path.strip("/"), self.headers.get("Range", "")))
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                path = self.path.strip("/")
                outer.tokens.append(self.headers.get("Authorization", ""))
                data, status = outer.files.get(path), outer.status.get(path)
                if path in outer.raw:
                    self.wfile.write(outer.raw[path])
                    return
                if data is None or status is not None:
                    self.send_response(status or 404)
                    self.send_header("X-Error-Code", outer.codes.get(path, "EntryNotFound"))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                tag, start = f'"{hashlib.sha256(data).hexdigest()}"', 0
                wanted = self.headers.get("Range", "")
                if wanted and self.headers.get("If-Range", tag) == tag:
                    start = int(wanted.removeprefix("bytes=").split("-")[0])
                if start > len(data):
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data) - start))
                self.send_header("ETag", tag)
                self.send_header("X-Repo-Commit", COMMIT)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.end_headers()
                if body:
                    stop = outer.cut.pop(path, len(data))
                    self.wfile.write(data[start:stop])

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        return Handler
