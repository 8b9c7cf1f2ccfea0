"""`models fetch` from the hub: look-ups of its own client, against a loopback server."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from safetensors.numpy import save

from tests.helpers.fetching import (
    BODY,
    CONFIG,
    WEIGHTS,
    Always,
    add,
    check_whole,
    empty_home,
    refused,
    served,
    sha,
    write,
)
from tests.helpers.loopback import COMMIT, Server
from vp3d.weights import download, fetch, sources
from vp3d.weights.catalogue import MODELS, is_pinned
from vp3d.weights.download import Unavailable
from vp3d.weights.locate import read_receipt
from vp3d.weights.verify import listing


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_home(tmp_path, monkeypatch)


def hub_files(
    repository: str, revision: str = "main", files: dict[str, bytes] = BODY
) -> dict[str, bytes]:
    return served(f"{repository}/resolve/{revision}", files)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")


def test_the_hubs_own_client_against_its_own_addresses(
    online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(hub_files("owner/name", "abc")) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        add(monkeypatch, "hf:owner/name@abc", known=False)
        check_whole(fetch.fetch("tiny", []))


def test_a_hub_file_that_is_not_what_the_hub_promises(
    online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(hub_files("owner/name")) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        add(monkeypatch, "hf:owner/name@main", known=False)
        real = download.download_hub

        def spoilt(repository: str, revision: str, path: str, target: Path) -> str:
            promised = real(repository, revision, path, target)
            target.write_bytes(target.read_bytes()[:-1] + b"?")
            return promised

        monkeypatch.setattr(sources, "download_hub", spoilt)
        assert "is not the published file" in refused("tiny")


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (403, "GatedRepo", "it is gated: accept its terms at"),
        (404, "RepoNotFound", "does not exist on the hub, or is private"),
        (404, "RevisionNotFound", "has no revision main"),
        (500, "", "no answer"),
    ],
)
def test_hub_refusals(
    status: int, code: str, reason: str, online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "owner/name/resolve/main/config.json"
    with Server(served("pub")) as server:
        server.status[path], server.codes[path] = status, code
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        add(monkeypatch, "hf:owner/name@main")
        assert reason in refused("tiny")
        add(monkeypatch, "hf:owner/name@main", f"{server.url}/pub", name="second")
        check_whole(fetch.fetch("second", []))


def test_a_hub_that_does_not_answer_is_passed_over(
    online: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network: the client's own exceptions, which are no OSErrors."""
    with Server({}) as server:
        url = server.url
    monkeypatch.setenv("HF_ENDPOINT", url)
    add(monkeypatch, "hf:owner/name@main")
    assert "hub owner/name: no answer (ConnectError" in refused("tiny")
    with pytest.raises(Unavailable, match="no answer"):
        download.exists_hub("owner/name", "main", "config.json")
    add(monkeypatch, "hf:owner/name@main", str(write(tmp_path / "here")), name="second")
    check_whole(fetch.fetch("second", []))


@pytest.mark.parametrize(
    "endpoint", ["nonsense", "http://[bad", "http://", "ftp://mirror", "http://127.0.0.1:none"]
)
def test_an_endpoint_that_is_no_address_is_named(
    endpoint: str, online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    add(monkeypatch, "hf:owner/name@main")
    assert "hub owner/name: HF_ENDPOINT is " in refused("tiny")


def test_a_hub_download_goes_on_where_it_broke(
    online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "owner/name/resolve/main/unet/model.safetensors"
    with Server(hub_files("owner/name")) as server:
        server.cut = Always({path: 70_000})
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        add(monkeypatch, "hf:owner/name@main")
        assert (
            "hub owner/name: the connection broke 4 times; run the same command again"
            in refused("tiny")
        )
        server.cut = {}
        server.ranges.clear()
        check_whole(fetch.fetch("tiny", []))
        assert [wanted for asked, wanted in server.ranges if asked == path] == ["bytes=70000-"]


def test_the_token_is_for_the_hub_and_not_for_its_storage(
    online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file: the hub gives its hash and its address, which is on another server."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Server({"stored/file": WEIGHTS}) as storage, Server(hub_files("owner/name")) as server:
        large = "owner/name/resolve/main/unet/model.safetensors"
        about = {"Location": f"{storage.url}/stored/file", "X-Linked-Etag": f'"{sha(WEIGHTS)}"'}
        about |= {
            "X-Linked-Size": str(len(WEIGHTS)),
            "X-Repo-Commit": COMMIT,
            "Content-Length": "0",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in about.items())
        server.raw[large] = f"HTTP/1.1 302 Found\r\n{lines}\r\n".encode()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        add(monkeypatch, "hf:owner/name@main", known=False)
        folder = fetch.fetch("tiny", [])
        check_whole(folder)
        assert storage.tokens == [""] and set(server.tokens) == {"Bearer hf_secret"}
        add(monkeypatch, "hf:owner/name@main", known=False, name="second")
        storage.files["stored/file"] = save({"w": np.zeros(5, np.float32)})
        assert "is not the published file" in refused("second")  # by the hub's own hash


class Addresses(dict[str, bytes]):
    """The hub's answers for one file: the next address each time; the last repeats."""

    def __init__(self, path: str, addresses: list[str], digest: str) -> None:
        super().__init__({path: b""})
        self.addresses, self.digest = addresses, digest

    def __getitem__(self, path: str) -> bytes:
        address = self.addresses[0] if len(self.addresses) == 1 else self.addresses.pop(0)
        about = {
            "Location": address,
            "X-Linked-Etag": f'"{self.digest}"',
            "X-Linked-Size": str(len(WEIGHTS)),
        }
        about |= {"X-Repo-Commit": COMMIT, "Content-Length": "0"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in about.items())
        return f"HTTP/1.1 302 Found\r\n{lines}\r\n".encode()


class Expiring(dict[str, int]):
    """Cuts after which the address is refused, as a signed one that has expired."""

    def __init__(self, server: Server, status: int, cuts: dict[str, int]) -> None:
        super().__init__(cuts)
        self.server, self.status = server, status

    def pop(self, key: str, default: int) -> int:
        if key in self:
            self.server.status[key] = self.status
        return super().pop(key, default)


@pytest.mark.parametrize("status", [401, 403])
def test_an_address_that_expires_is_asked_for_anew(
    status: int, online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "owner/name/resolve/main/unet/model.safetensors"
    with (
        Server(dict.fromkeys(("old", "next", "last"), WEIGHTS)) as storage,
        Server(hub_files("owner/name")) as server,
    ):
        addresses = [f"{storage.url}/{name}" for name in ("old", "next", "last")]
        server.raw = Addresses(path, addresses, sha(WEIGHTS))
        storage.cut = Expiring(storage, status, {"old": 70_000, "next": 120_000})
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        add(monkeypatch, "hf:owner/name@main", known=False)
        check_whole(fetch.fetch("tiny", []))
    again, further = "bytes=70000-", "bytes=120000-"
    assert storage.ranges == [
        ("old", ""),
        ("old", again),
        ("next", again),
        ("next", further),
        ("last", further),
    ]


def test_a_storage_that_refuses_every_address(
    online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "owner/name/resolve/main/unet/model.safetensors"
    with Server({"stored": WEIGHTS}) as storage, Server(hub_files("owner/name")) as server:
        server.raw = Addresses(path, [f"{storage.url}/stored"], sha(WEIGHTS))
        storage.cut = Expiring(storage, 403, {"stored": 70_000})
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        add(monkeypatch, "hf:owner/name@main", known=False)
        message = refused("tiny")
        assert "it refuses access (HTTP 403); run the same command again to resume" in message
        assert len(storage.ranges) == 1 + download.ADDRESSES
        storage.status.clear()
        storage.ranges.clear()
        check_whole(fetch.fetch("tiny", []))
        assert storage.ranges == [("stored", "bytes=70000-")]


def test_a_hub_that_refuses_its_own_file_is_asked_once(
    tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(hub_files("owner/name")) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        path = "owner/name/resolve/main/config.json"
        server.cut = Expiring(server, 403, {path: 3})  # HEAD goes through, the first GET is cut off
        with pytest.raises(Unavailable, match="^it refuses access .HTTP 403.$"):
            download.download_hub("owner/name", "main", "config.json", tmp_path / "config.json")
        assert len(server.ranges) == 2


def test_a_token_does_not_follow_a_redirect(tmp_path: Path) -> None:
    with Server({"stored/file": WEIGHTS}) as storage, Server({}) as server:
        lines = f"Location: {storage.url}/stored/file\r\nContent-Length: 0\r\n"
        server.raw["a"] = f"HTTP/1.1 302 Found\r\n{lines}\r\n".encode()
        download.download_http(f"{server.url}/a", tmp_path / "a", "Bearer hf_secret")
        assert (server.tokens, storage.tokens) == (["Bearer hf_secret"], [""]) and (
            tmp_path / "a"
        ).read_bytes() == WEIGHTS


def test_the_hub_in_offline_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, "hf:owner/name@main")
    assert "no answer (OfflineModeIsEnabled" in refused("tiny")


def test_a_hub_repository_with_a_pickle_only(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"config.json": CONFIG, "unet/pytorch_model.bin": b"\x80\x02}q\x00."}
    with Server(hub_files("owner/name", files=files)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        add(monkeypatch, "hf:owner/name@main")
        assert "it has pytorch_model.bin, a pickle" in refused("tiny")


def test_the_commit_that_a_branch_led_to_is_recorded(
    online: None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(hub_files("owner/name")) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        add(monkeypatch, "hf:owner/name@main", known=False)
        check_whole(fetch.fetch("tiny", []))
    receipt = read_receipt(home / "tiny")
    assert {path: receipt[path].get("revision") for path in receipt} == {
        **dict.fromkeys(BODY, COMMIT),
        "note.txt": None,
    }


def test_files_of_two_commits_are_not_mixed(
    online: None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(hub_files("owner/name")) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        add(monkeypatch, "hf:owner/name@main", known=False)
        real, commits = download.download_hub, iter(["1" * 40, "2" * 40])

        def moved(repository: str, revision: str, path: str, target: Path) -> download.Received:
            received = real(repository, revision, path, target)
            return download.Received(received.sha256, next(commits))

        monkeypatch.setattr(sources, "download_hub", moved)
        assert "its main moved to another commit" in refused("tiny")
    assert not (home / "tiny").exists()


def test_sources_that_follow_a_branch_are_marked() -> None:
    loose = {
        source
        for model in MODELS.values()
        for part in model.parts
        for source in part.sources
        if not is_pinned(source)
    }
    assert all(source.endswith("@main") or "/resolve/master" in source for source in loose)
    shown = listing(["taesd", "sd15"])
    assert "from hf:madebyollin/taesd@main (a branch: no commit of it is known here)" in shown
    assert shown.count("(a branch:") == 2 and f"{MODELS['sd15'].parts[0].sources[0]}\n" in shown
    assert is_pinned(f"https://host/x/resolve/{COMMIT}") and is_pinned(f"hf:a/b@{COMMIT}")
    assert not is_pinned("hf:a/b") and not is_pinned(f"https://host/{COMMIT}/resolve/main")
