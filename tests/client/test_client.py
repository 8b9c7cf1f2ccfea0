"""The client against a server of the test: events, refusals, retries, downloads, redirects."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from http.client import IncompleteRead

import pytest

from tests.helpers.service import free_port
from vp3d import client
from vp3d.client import Client, Event, ServiceError, read_events

GLB = b"glTF of a test"


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers by path; counts what was asked."""

    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        times = [path for path, _ in self.asked].count(self.path)
        if self.path == "/busy" and times < 3:
            self.reply(503, b"{}", {"Retry-After": "0"})
        elif self.path == "/moved":
            self.reply(302, b"", {"Location": "/elsewhere"})
        elif self.path == "/refused":
            self.reply(422, b'{"code": "unknown_words", "detail": "mushrom?"}')
        elif self.path == "/cut" and times < 3:
            self.reply(200, b'{"ok"', {}, length=100)
        elif self.path == "/bad" and times % 2:
            self.reply(503, b"{}")
        elif self.path == "/bad":
            self.reply(200, b'{"ok"', {}, length=100)
        elif self.path == "/file-cut" and times < 3:
            tag = hashlib.sha256(GLB).hexdigest()
            self.reply(200, GLB[:5], {"ETag": f'"{tag}"'}, length=len(GLB))
        elif self.path.startswith("/file"):
            tag = "0" * 64 if self.path == "/file-damaged" else hashlib.sha256(GLB).hexdigest()
            self.reply(200, GLB, {"ETag": f'"{tag}"'})
        elif self.path == "/stream":
            after = int(self.headers["Last-Event-ID"])
            lines = [f"id: {n}\nevent: step\ndata: {{}}\n\n" for n in range(after + 1, after + 3)]
            last = f"id: {after + 3}\nevent: e" if after < 4 else "id: 7\nevent: end\ndata: {}\n\n"
            self.reply(200, "".join([*lines, last]).encode())  # the first streams break
        else:
            self.reply(200, b'{"ok": true}')

    def reply(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int = 0
    ) -> None:
        self.send_response(status)
        size = {"Content-Length": str(length or len(body))}
        for name, value in {**(headers or {}), **size}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Be quiet."""


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    Answers.asked = []
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}", Answers.asked
    found.shutdown()
    found.server_close()


def test_events_are_read_line_by_line():
    lines = [b": alive\n", b"\n", b"id: 4\n", b"event: step\n", b'data: {"progress": 0.5,\n']
    lines += [b'data: "eta_s": 3}\n', b"\n", b"id: 5\n", b"event: cut"]
    events = list(read_events(lines))
    assert events == [Event(4, "step", {"progress": 0.5, "eta_s": 3})]
    assert (events[0].progress, events[0].eta_s) == (0.5, 3)


def test_a_busy_server_is_asked_again(server):
    url, asked = server
    assert Client(url, "t").call("GET", "/busy") == {"ok": True}
    assert asked == [("/busy", "Bearer t")] * 3


def test_a_reply_that_breaks_off_in_the_middle_is_asked_for_again(server, tmp_path):
    url, asked = server
    reader = Client(url)
    assert reader.call("GET", "/cut") == {"ok": True}
    assert reader.download("/file-cut", tmp_path / "a.glb").read_bytes() == GLB
    assert [path for path, _ in asked] == ["/cut"] * 3 + ["/file-cut"] * 3


def test_tries_count_together_for_a_busy_answer_and_a_broken_one(server, monkeypatch, tmp_path):
    url, asked = server
    waited: list[float] = []
    monkeypatch.setattr(client.time, "sleep", waited.append)
    with pytest.raises(IncompleteRead):
        Client(url, tries=4).call("GET", "/bad")
    assert len(asked) == 4 and waited == [0.3, 0.6, 1.2]
    with pytest.raises(ServiceError, match="503"):
        Client(url, tries=3).download("/bad", tmp_path / "never")
    assert len(asked) == 4 + 3


def test_a_stream_without_a_server_ends_after_its_tries(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(client.time, "sleep", waited.append)
    with pytest.raises(OSError, match="refused"):
        next(Client(f"http://127.0.0.1:{free_port()}", tries=1).events("/stream"))
    assert len(waited) == client.PATIENCE - 1


def test_a_refusal_has_its_code(server):
    with pytest.raises(ServiceError, match="mushrom") as caught:
        Client(server[0]).call("GET", "/refused")
    assert (caught.value.status, caught.value.code) == (422, "unknown_words")


def test_a_redirect_is_not_followed(server):
    url, asked = server
    with pytest.raises(ServiceError):
        Client(url, "secret").call("GET", "/moved")
    assert [path for path, _ in asked] == ["/moved"]


def test_a_broken_stream_continues_after_the_last_complete_event(server):
    found = []
    for event in Client(server[0]).events("/stream"):
        found.append((event.id, event.name))
        if event.name == "end":
            break
    assert found == [(n, "step") for n in range(1, 7)] + [(7, "end")]


def test_a_download_is_complete_and_right_or_not_there(server, tmp_path):
    reader = Client(server[0])
    assert reader.download("/file", tmp_path / "a.glb").read_bytes() == GLB
    with pytest.raises(ValueError, match="damaged"):
        reader.download("/file-damaged", tmp_path / "b.glb")
    assert [path.name for path in tmp_path.iterdir()] == ["a.glb"]


def test_another_kind_of_address_is_refused():
    with pytest.raises(ValueError, match="http"):
        Client("file:///etc/passwd")
