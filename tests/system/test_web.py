"""Redirects: credentials stay with the server they are for, and a POST is not redirected."""

import ast
import http.server
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from vp3d.errors import UserError
from vp3d.metrics.scorers import ChatEndpoint
from vp3d.system.web import CREDENTIALS, open_url
from vp3d.weights.download import Unavailable, download_http, exists_http

ROOT = Path(__file__).resolve().parents[2]
SECRET = "Bearer SECRET"


class Host:
    """A server on a loopback address that notes its requests and may redirect them."""

    def __init__(self, address: str, to: str = "", code: int = 302) -> None:
        self.heard: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.heard.append((self.command, {k.lower(): v for k, v in self.headers.items()}))
                body = b'{"choices": [{"message": {"content": "4"}}]}'
                self.send_response(code if to else 200)
                if to:
                    self.send_header("Location", to)
                self.send_header("Content-Length", "0" if to else str(len(body)))
                self.end_headers()
                if not to and self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_POST = do_HEAD = answer

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer((address, 0), Handler)
        self.url = f"http://{address}:{self.server.server_port}"
        Thread(target=lambda: self.server.serve_forever(0.01), daemon=True).start()

    def close(self) -> None:
        """Stop it."""
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def other() -> Iterator[Host]:
    """The host that a redirect leads to: another address."""
    host = Host("127.0.0.2")
    yield host
    host.close()


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Hosts to close at the end."""
    opened: list[Host] = []
    yield opened
    for host in opened:
        host.close()


@pytest.mark.parametrize("name", sorted(CREDENTIALS))
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_credential_follows_a_redirect(
    name: str, code: int, other: Host, hosts: list[Host]
) -> None:
    hosts.append(first := Host("127.0.0.1", f"{other.url}/x", code))
    with open_url(first.url, 5.0, {name.title(): SECRET, "X-Other": "kept"}) as reply:
        assert reply.status == 200
    assert first.heard[0][1][name] == SECRET
    assert name not in other.heard[0][1] and other.heard[0][1]["x-other"] == "kept"


def test_nor_to_another_port_nor_on_the_way_back(other: Host, hosts: list[Host]) -> None:
    hosts.append(second := Host("127.0.0.1", other.url))
    hosts.append(first := Host("127.0.0.1", second.url))
    with open_url(first.url, 5.0, {"authorization": SECRET}):
        pass
    assert [host.heard[0][1].get("authorization") for host in (first, second, other)] == [
        *(SECRET, None, None)
    ]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_the_endpoint_refuses_a_redirect(
    code: int, other: Host, hosts: list[Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VP3D_ENDPOINT_KEY", "SECRET")
    hosts.append(first := Host("127.0.0.1", f"{other.url}/chat/completions", code))
    with pytest.raises(UserError, match="redirects a POST to 127.0.0.2") as caught:
        ChatEndpoint(first.url, "m").ask("how many?")
    assert first.heard[0][0] == "POST" and first.heard[0][1]["authorization"] == SECRET
    assert not other.heard and "SECRET" not in str(caught.value)
    assert ChatEndpoint(other.url, "m").ask("how many?") == "4"


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_a_redirect_does_not_leave_the_web(to: str, hosts: list[Host], tmp_path: Path) -> None:
    hosts.append(first := Host("127.0.0.1", to))
    with pytest.raises(urllib.error.HTTPError):
        open_url(first.url, 5.0)
    with pytest.raises(Unavailable):
        download_http(first.url, tmp_path / "a")
    assert not exists_http(first.url)


def test_other_addresses_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    for url in (f"file://{tmp_path}/a", "data:,x", "ftp://127.0.0.1/a", "a"):
        with pytest.raises(ValueError, match="not an http"):
            open_url(url, 5.0)


def test_nothing_else_asks_the_web() -> None:
    """urllib.request is used in one module, through which every request goes."""
    found = []
    for path in [*(ROOT / "vp3d").rglob("*.py"), *(ROOT / "integrations").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if {"urllib.request", "requests", "httpx", "http.client.HTTPConnection"} & set(names):
                found.append(path.relative_to(ROOT).as_posix())
    # the client is one file that needs nothing else, to be copied into other programs
    assert sorted(set(found)) == ["vp3d/client.py", "vp3d/system/web.py"]
