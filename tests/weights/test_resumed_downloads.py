"""A download continues only if the server proves that it is the same file; else it restarts."""

from __future__ import annotations

import http.server
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from vp3d.weights import download
from vp3d.weights.download import Unavailable, Version, download_http

OLD, NEW = b"A" * 100_000, b"B" * 100_000
DATE, EARLIER = "Mon, 30 Nov 2026 12:00:00 GMT", "Mon, 30 Nov 2026 11:00:00 GMT"
JUST_NOW = "Mon, 30 Nov 2026 11:59:59 GMT"
Answer = tuple[int, dict[str, str], bytes]  # status, headers, bytes that are sent


class Rude:
    """A server whose answers are given one by one, with whatever headers and bytes."""

    def __init__(self, answers: list[Callable[[str], Answer]]) -> None:
        self.asked: list[tuple[str, str]] = []  # Range and If-Range of each request
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                asked = self.headers.get("Range", "")
                number = min(len(outer.asked), len(answers) - 1)
                outer.asked.append((asked, self.headers.get("If-Range", "")))
                status, headers, body = answers[number](asked)
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/a.bin"
        Thread(target=lambda: self.server.serve_forever(0.01), daemon=True).start()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rude]]:
    """Start rude servers; no waiting between attempts."""
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    started: list[Rude] = []

    def start(*answers: Callable[[str], Answer]) -> Rude:
        started.append(Rude(list(answers)))
        return started[-1]

    yield start
    for rude in started:
        rude.server.shutdown()
        rude.server.server_close()


def whole(data: bytes, sent: int | None = None, **headers: str) -> Callable[[str], Answer]:
    """A 200 reply of which the first `sent` bytes arrive."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named = {"Content-Length": str(len(data)), "Date": DATE} | named
    return lambda asked: (200, named, data[:sent])


def part(
    data: bytes, first: int | None = None, shown: str | None = None, **headers: str
) -> Callable[[str], Answer]:
    """A 206 reply from `first`, or from where it was asked for; `shown` is its Content-Range."""

    def answer(asked: str) -> Answer:
        start = int(asked.removeprefix("bytes=").rstrip("-")) if first is None else first
        span = f"bytes {start}-{len(data) - 1}/{len(data)}" if shown is None else shown
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named |= {"Content-Length": str(len(data) - start), "Date": DATE}
        return 206, named | ({"Content-Range": span} if span else {}), data[start:]

    return answer


def get(rude: Rude, folder: Path) -> bytes:
    """The file as it is downloaded; nothing else is left."""
    download_http(rude.url, folder / "a.bin")
    assert [path.name for path in folder.iterdir()] == ["a.bin"]
    return (folder / "a.bin").read_bytes()


@pytest.mark.parametrize(
    "headers, validator",
    [({"ETag": '"1"'}, '"1"'), ({"Last_Modified": EARLIER}, EARLIER)],
    ids=["strong ETag", "old date"],
)
def test_it_continues_where_the_server_proves_it(
    headers: dict[str, str], validator: str, serve: Callable[..., Rude], tmp_path: Path
) -> None:
    rude = serve(whole(OLD, 40_000, **headers), part(OLD, **headers))
    assert get(rude, tmp_path) == OLD
    assert rude.asked == [("", ""), ("bytes=40000-", validator)]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"ETag": 'W/"1"'},
        {"ETag": "1"},
        {"ETag": 'W/"1"', "Last_Modified": EARLIER},
        {"Last_Modified": JUST_NOW},
        {"Last_Modified": "yesterday"},
        {"ETag": '"a"b"'},
    ],
    ids=["nothing", "weak", "bare", "weak and date", "just changed", "no date", "odd"],
)
def test_it_starts_again_without_a_strong_validator(
    headers: dict[str, str], serve: Callable[..., Rude], tmp_path: Path
) -> None:
    rude = serve(whole(OLD, 40_000, **headers), whole(NEW, **headers))
    assert get(rude, tmp_path) == NEW
    assert rude.asked == [("", ""), ("", "")]


@pytest.mark.parametrize(
    "reply",
    [
        part(NEW, 39_999, ETag='"1"'),
        part(NEW, 40_001, ETag='"1"'),
        part(NEW, 0, ETag='"1"'),
        part(NEW, 40_000, "bytes 30000-99999/100000", ETag='"1"'),
        part(NEW, 40_000, "bytes 40000-99999/*", ETag='"1"'),
        part(NEW, 40_000, "bytes 40000-99999/100001", ETag='"1"'),
        part(NEW + b"B", 40_000, ETag='"1"'),
        part(NEW, 40_000, "bytes 40000-100000/100000", ETag='"1"'),
        part(NEW, 40_000, "", ETag='"1"'),
        part(NEW, 40_000, "nonsense", ETag='"1"'),
        part(NEW, 40_000, ETag='"2"'),
    ],
    ids=[
        *("before", "after", "from the start", "says another", "no total", "another total"),
        *("longer", "past the end", "no Content-Range", "nonsense", "another ETag"),
    ],
)
def test_bytes_of_another_file_are_not_appended(
    reply: Callable[[str], Answer], serve: Callable[..., Rude], tmp_path: Path
) -> None:
    rude = serve(whole(OLD, 40_000, ETag='"1"'), reply, whole(NEW, ETag='"2"'))
    assert get(rude, tmp_path) == NEW
    assert [asked for asked, _ in rude.asked] == ["", "bytes=40000-", ""]


def test_the_whole_file_to_a_range_request_starts_again(
    serve: Callable[..., Rude], tmp_path: Path
) -> None:
    rude = serve(whole(OLD, 40_000, ETag='"1"'), whole(NEW + b"B", ETag='"2"'))
    assert get(rude, tmp_path) == NEW + b"B"


def test_a_changed_length_starts_again(serve: Callable[..., Rude], tmp_path: Path) -> None:
    shorter = NEW[:30_000]
    rude = serve(
        whole(OLD, 40_000, ETag='"1"'),
        lambda asked: (416, {"Content-Length": "0", "Content-Range": "bytes */30000"}, b""),
        whole(shorter, ETag='"2"'),
    )
    assert get(rude, tmp_path) == shorter


@pytest.mark.parametrize(
    "answer",
    [
        lambda asked: (206, {"Content-Length": "4", "Content-Range": "bytes 0-3/4"}, b"abcd"),
        lambda asked: (200, {"Content-Length": "4", "Content-Encoding": "gzip"}, b"abcd"),
        lambda asked: (200, {}, b"abcd"),
        lambda asked: (204, {}, b""),
        lambda asked: (203, {"Content-Length": "4"}, b"abcd"),
    ],
    ids=["part", "compressed", "no length", "no content", "not its own"],
)
def test_replies_that_are_no_complete_file_are_refused(
    answer: Callable[[str], Answer], serve: Callable[..., Rude], tmp_path: Path
) -> None:
    with pytest.raises(Unavailable) as caught:
        download_http(serve(answer).url, tmp_path / "a.bin")
    assert "\n" not in str(caught.value) and not (tmp_path / "a.bin").exists()


def test_chunks_need_no_length(serve: Callable[..., Rude], tmp_path: Path) -> None:
    chunked = b"4\r\nabcd\r\n0\r\n\r\n"
    rude = serve(lambda asked: (200, {"Transfer-Encoding": "chunked"}, chunked))
    assert get(rude, tmp_path) == b"abcd"


def test_a_version_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.etag"
    for version in (Version('"x"', 7), Version(EARLIER, 0)):
        version.write(path)
        assert Version.read(path) == version
    Version("", 7).write(path)
    assert not path.exists() and Version.read(path) == Version()
    for text in ('"x"', '"x"\nseven\n'):  # the first is of version 0.1.0
        path.write_text(text)
        assert Version.read(path) == Version('"x"', 0)
    for data in (b"", b"\xff", b'W/"x"\n7\n', b"x\r\nHost: y\n", b"/" * 99):
        path.write_bytes(data)
        assert Version.read(path).validator == ""
