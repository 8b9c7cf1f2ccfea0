"""`models fetch | verify | list` with a loopback server and folders; see also test_fetch_hub.py."""

from __future__ import annotations

import dataclasses
import io
import re
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
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
from tests.helpers.loopback import Server
from vp3d.cli.main import main
from vp3d.errors import UserError
from vp3d.system import console
from vp3d.weights import download, fetch, locate, progress, sources, verify
from vp3d.weights.catalogue import MODELS, File, Model, Part
from vp3d.weights.download import Unavailable
from vp3d.weights.locate import find_weights, models_folder, read_receipt


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_home(tmp_path, monkeypatch)


def test_from_an_http_mirror(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(served("pub")) as server:
        add(monkeypatch, f"{server.url}/pub")
        check_whole(fetch.fetch("tiny", []))
        assert len(server.ranges) == 2
    assert find_weights("tiny", "prior.path") == (
        str(home / "tiny"),
        True,
    )  # and now the server is gone
    assert fetch.fetch("tiny", []) == home / "tiny"


def test_a_broken_connection_is_taken_up_where_it_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(served("pub")) as server:
        server.cut["pub/unet/model.safetensors"] = 70_000
        add(monkeypatch, f"{server.url}/pub")
        check_whole(fetch.fetch("tiny", []))
    assert server.ranges[1:] == [
        ("pub/unet/model.safetensors", ""),
        ("pub/unet/model.safetensors", "bytes=70000-"),
    ]


def test_a_connection_that_breaks_every_time_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(served("pub")) as server:
        server.cut = Always({"pub/unet/model.safetensors": 70_000})
        add(monkeypatch, f"{server.url}/pub")
        assert "broke 4 times; run the same command again to resume" in refused("tiny")
    assert len([path for path, _ in server.ranges if "safetensors" in path]) == download.ATTEMPTS


def test_a_source_that_broke_off_is_gone_on_with_and_not_left_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of a large file is stored, so the next source would start again at its first byte.

    A source that then sends nothing more is skipped.
    """
    path = "tiny/unet/model.safetensors"
    with Server(served("tiny")) as first, Server(served("tiny")) as second:
        add(monkeypatch, f"{first.url}/tiny", f"{second.url}/tiny")
        first.cut = Always({path: 70_000})
        assert "the connection broke 4 times; run the same command again" in refused("tiny")
        assert not second.ranges
        first.cut, first.status = {}, {path: 500}
        check_whole(fetch.fetch("tiny", []))
        assert ("tiny/unet/model.safetensors", "") in second.ranges


def test_a_whole_file_of_one_source_is_not_asked_of_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where its hash is known, so that it is the same file."""
    broken, sound = (served("tiny") | {"tiny/last.json": data} for data in (b"no JSON", b"{}"))
    with Server(broken) as first, Server(sound) as second:
        model = add(monkeypatch, f"{first.url}/tiny", f"{second.url}/tiny")
        part = dataclasses.replace(model.parts[0], files=(*model.parts[0].files, File("last.json")))
        monkeypatch.setitem(MODELS, "tiny", dataclasses.replace(model, parts=(part,)))
        check_whole(fetch.fetch("tiny", []))
        assert [path for path, _ in second.ranges] == ["tiny/config.json", "tiny/last.json"]


def test_a_place_that_cannot_be_written_is_one_line(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, str(write(tmp_path / "here")))
    home.mkdir()
    (home / ".tiny.part").write_text("a file where the folder should be")
    message = refused("tiny")
    assert (
        message.startswith(f"cannot write {home / '.tiny.part'}")
        and "VP3D_MODELS=FOLDER" in message
    )


@pytest.mark.parametrize("live", [False, True], ids=["plain", "terminal"])
def test_progress_is_shown(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    screen = Console(file=stream, force_terminal=live, width=100)
    monkeypatch.setattr(console, "terminal", lambda: screen)
    monkeypatch.setattr(progress, "terminal", lambda: screen)
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    with Server(served("pub")) as server:
        add(monkeypatch, f"{server.url}/pub")
        fetch.fetch("tiny", [])
    shown = stream.getvalue()
    assert "model.safetensors" in shown
    assert (
        re.search(r"200\.\d/200\.\d kB", shown)
        if live
        else re.search(r": 0 of 0 MB, \d+\.\d MB/s$", shown, re.M)
    )


def test_a_stopped_fetch_goes_on_where_it_stopped(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(BaseException):
        """As Ctrl-C."""

    real = download.Transfer.add

    def stop(self: download.Transfer, count: int) -> None:
        real(self, count)
        if "safetensors" in self.name:
            raise Stopped

    with Server(served("pub")) as server:
        add(monkeypatch, f"{server.url}/pub")
        with monkeypatch.context() as patch:
            patch.setattr(download, "CHUNK", 30_000)
            patch.setattr(download.Transfer, "add", stop)
            with pytest.raises(Stopped):
                fetch.fetch("tiny", [])
        assert not (home / "tiny").exists()
        with pytest.raises(UserError, match="run: python launch.py models fetch tiny$"):
            find_weights("tiny", "prior.path")
        check_whole(fetch.fetch("tiny", []))
    assert [wanted for path, wanted in server.ranges if "safetensors" in path] == [
        "",
        "bytes=30000-",
    ]


def test_a_file_that_changed_in_between_starts_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Server({"a": b"old" * 1000}) as server:
        server.cut["a"] = 1000
        target = tmp_path / "a"
        assert not download._continue_http(
            f"{server.url}/a", target.with_name("a.partial"), target.with_name("a.etag")
        )
        server.files["a"] = b"new" * 900
        download.download_http(f"{server.url}/a", target)
        assert target.read_bytes() == b"new" * 900
        target.with_name("b.partial").write_bytes(b"x" * 5000)  # longer than what is there
        server.files["b"] = b"short"
        download.download_http(f"{server.url}/b", tmp_path / "b")
        assert (tmp_path / "b").read_bytes() == b"short"


def test_wrong_bytes_are_refused_and_the_next_source_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = BODY | {"unet/model.safetensors": save({"w": np.zeros(5, np.float32)})}
    with Server(served("bad", bad) | served("good")) as server:
        add(monkeypatch, f"{server.url}/bad")
        message = refused("tiny")
        assert "is not the published file" in message and "--from" in message
        add(monkeypatch, f"{server.url}/bad", f"{server.url}/good")
        folder = fetch.fetch("tiny", [])
        check_whole(folder)
        assert {
            entry["source"] for path, entry in read_receipt(folder).items() if path in BODY
        } == {f"{server.url}/good"}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (403, "refuses access"),
        (401, "requires a login"),
        (410, "it has removed the file"),
        (404, "has no such file"),
        (503, "the server failed (HTTP 503)"),
    ],
)
def test_gated_and_vanished_servers(
    status: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(served("pub")) as server:
        server.status["pub/config.json"] = status
        add(monkeypatch, f"{server.url}/pub")
        message = refused("tiny")
    assert reason in message and message.startswith("cannot fetch tiny: http")


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server({}) as server:
        url = server.url
    add(monkeypatch, url)
    assert "no answer" in refused("tiny")


@pytest.mark.parametrize(
    "place",
    ["http://127.0.0.1:9/with a space", "http://[bad", "https://", "http://127.0.0.1:none/"],
)
def test_an_address_that_is_none_is_passed_over(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, str(write(tmp_path / "here")))
    check_whole(fetch.fetch("tiny", [place]))
    add(monkeypatch, name="second")
    assert re.match(
        f"cannot fetch second: {re.escape(place[:7])}.*: no answer [(]", refused("second", place)
    )


@pytest.mark.parametrize(
    "raw",
    [
        b"this is no http\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\ncut off",
        b"HTTP/1.1 302 Found\r\nLocation: http://[bad\r\nContent-Length: 0\r\n\r\n",
        b"",
    ],
    ids=["no-http", "chunk-cut-off", "redirected-to-nowhere", "nothing"],
)
def test_a_server_that_talks_nonsense_is_one_line(
    raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(served("pub")) as server:
        server.raw["bad/unet/model.safetensors"] = raw
        server.files["bad/config.json"] = CONFIG
        add(monkeypatch, f"{server.url}/bad")
        assert re.search("no answer|HTTP 302", refused("tiny"))
        add(monkeypatch, f"{server.url}/bad", f"{server.url}/pub", name="second")
        check_whole(fetch.fetch("second", []))


def test_a_connection_that_fails_is_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are OSErrors: after one of reading the next source is tried, one of writing stops."""

    class Reply:
        def read(self, size: int) -> bytes:
            raise OSError(113, "No route to host")

    with pytest.raises(ConnectionError, match="No route"):
        download._receive(Reply(), 5)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with Server(served("pub")) as server:
        add(monkeypatch, f"{server.url}/pub")
        monkeypatch.setattr(download, "_pump", full)
        assert re.match("cannot write .*No space left on device; free some space", refused("tiny"))


def test_an_error_page_is_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    page = BODY | {"unet/model.safetensors": b"<html>log in</html>"}
    with Server(served("pub", page)) as server:
        add(monkeypatch, f"{server.url}/pub", known=False)
        assert "no safetensors file" in refused("tiny")
        server.files |= served("pub") | {"pub/config.json": b"<html>"}
        add(monkeypatch, f"{server.url}/pub", known=False, name="second")
        assert "config.json is no JSON file" in refused("second")


@pytest.mark.parametrize("twin", ["unet/model.bin", "unet/pytorch_model.bin", "unet/model.pt"])
def test_a_pickle_is_refused_with_the_reason(
    twin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"config.json": CONFIG, twin: b"\x80\x02}q\x00."}
    found = f"it has {Path(twin).name}, a pickle"
    expected = f"{found}, and no unet/model.safetensors; pickles are never loaded"
    with Server(served("pub", files)) as server:
        add(monkeypatch, f"{server.url}/pub", str(write(tmp_path / "folder", files)))
        message = refused("tiny")
        assert message.count(expected) == 2
        assert not any(path.endswith(twin) for path, _ in server.ranges)  # it was not even fetched


def test_a_publisher_with_a_pickle_only(monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, pickle="https://example.org/tiny: tiny.pt")
    message = refused("tiny")
    assert (
        "`python launch.py models convert tiny tiny.pt`" in message
        and "https://example.org/tiny" in message
    )


@pytest.mark.parametrize("name", fetch.PROBES)
def test_weights_of_another_model_are_not_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its publisher calls the aesthetic head model.safetensors, as its CLIP and many others are."""
    part = next(part for part in MODELS[name].parts if part.pickle)
    (file,) = part.files
    clip = write(
        tmp_path / "clip",
        {file.at_source: save({"vision_model.embeddings.class_embedding": np.ones(4, np.float32)})},
    )
    right = save({fetch.PROBES[name]: np.ones(4, np.float32)})
    monkeypatch.setitem(MODELS, name, Model("", "", (Part(part.files, (), part.pickle),)))
    message = refused(name, str(clip))
    assert (
        f"{clip}: {file.at_source} is of another model: it has no tensor {fetch.PROBES[name]}"
        in message
    )
    assert not (models_folder() / name).exists()
    with Server(served("pub", {file.at_source: right})) as server:
        folder = fetch.fetch(name, [str(clip), f"{server.url}/pub"])
    assert (folder / file.path).read_bytes() == right
    assert (
        verify.verify([name])
        == f"{name}: 0 files as published, 1 as fetched (no published hash is known)\n"
    )


def test_from_folders_and_mirrors_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, "http://127.0.0.1:9/never")
    check_whole(fetch.fetch("tiny", [str(tmp_path / "nothing"), str(write(tmp_path / "here"))]))
    add(monkeypatch, name="nested")
    write(tmp_path / "store" / "nested")
    monkeypatch.setenv("VP3D_MIRRORS", str(tmp_path / "store"))
    check_whole(fetch.fetch("nested", []))
    with Server(served("all/third")) as server:
        add(monkeypatch, name="third", known=False)
        check_whole(fetch.fetch("third", [f"{server.url}/all"]))


def test_a_file_under_another_name_at_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = File("model.safetensors", sha(WEIGHTS), 1, "half/model.fp16.safetensors")
    monkeypatch.setitem(MODELS, "half", Model("", "", (Part((file,), (str(tmp_path / "src"),)),)))
    write(tmp_path / "src", {"half/model.fp16.safetensors": WEIGHTS})
    assert (fetch.fetch("half", []) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_place_of_the_users_may_be_laid_out_as_the_source_or_as_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a clone of SDXL, our name of the half precision is that of the single precision.

    A copy of models/ has our names only.
    """
    half, single, head = (
        WEIGHTS,
        save({"w": np.ones(9, np.float64)}),
        save({"head": np.ones(3, np.float32)}),
    )
    unet = File(
        "unet/model.safetensors", remote="unet/model.fp16.safetensors"
    )  # no hash would tell them apart
    files = (unet, File("model.safetensors"), File("head.safetensors", remote="model.safetensors"))
    clone = {
        "unet/model.safetensors": single,
        "unet/model.fp16.safetensors": half,
        "model.safetensors": single,
    }
    ours = {"unet/model.safetensors": half, "model.safetensors": single, "head.safetensors": head}
    for number, (layout, expected) in enumerate(
        ((clone | {"head.safetensors": head}, ours), (ours, ours))
    ):
        with Server(served("all", layout)) as server:
            for place in (f"{server.url}/all", str(write(tmp_path / f"all{number}", layout))):
                name = f"from-{number}-{place[:4].strip('/')}"
                monkeypatch.setitem(MODELS, name, Model("", "", (Part(files, ()),)))
                folder = fetch.fetch(name, [place])
                assert {path: (folder / path).read_bytes() for path in expected} == expected


def test_a_source_of_the_table_is_asked_for_its_own_names_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Server(served("pub", {"model.safetensors": WEIGHTS})) as server:
        file = File("model.safetensors", remote="half/model.fp16.safetensors")
        monkeypatch.setitem(MODELS, "half", Model("", "", (Part((file,), (f"{server.url}/pub",)),)))
        assert "it has no such file" in refused("half")


def test_a_file_where_a_model_should_be(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch)
    home.mkdir()
    (home / "tiny").write_text("notes")
    assert f"{home / 'tiny'} is a file where the folder of a model should be" in refused("tiny")


def test_the_same_file_of_two_models_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(served("pub")) as server:
        add(monkeypatch, f"{server.url}/pub")
        add(monkeypatch, f"{server.url}/pub", name="twin")
        fetch.fetch("tiny", [])
        check_whole(fetch.fetch("twin", []))
        assert [path for path, _ in server.ranges].count("pub/unet/model.safetensors") == 1


def test_verify_finds_damage_and_fetch_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(served("pub")) as server:
        add(monkeypatch, f"{server.url}/pub")
        folder = fetch.fetch("tiny", [])
        assert (
            verify.verify([])
            == "tiny: 1 files as published, 2 as fetched (no published hash is known)\n"
        )
        spoilt = bytearray(WEIGHTS)
        spoilt[-1] ^= 1
        (folder / "unet/model.safetensors").write_bytes(spoilt)
        assert main(["models", "verify"]) == 2
        assert "unet/model.safetensors is damaged" in capsys.readouterr().err
        (folder / "config.json").unlink()
        with pytest.raises(
            UserError,
            match="config.json is missing.*To repair: python launch.py models fetch tiny",
        ):
            verify.verify(["tiny"])
        server.ranges.clear()
        check_whole(fetch.fetch("tiny", []))
        assert len(server.ranges) == 2 and verify.verify(["tiny"])
        (folder / "config.json").unlink()
        server.ranges.clear()
        check_whole(fetch.fetch("tiny", []))
        assert [path for path, _ in server.ranges] == ["pub/config.json"]  # what is sound is kept


def spoil(folder: Path) -> bytes:
    """Another last bit in the weights; returns what they are then."""
    spoilt = WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])
    (folder / "unet/model.safetensors").write_bytes(spoilt)
    return spoilt


def cut_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, calls: int) -> None:
    """Ctrl-C before the call number `calls` of a function, from 0 on."""
    real, count = getattr(owner, name), iter(range(1000))

    def cut(*arguments: object, **named: object) -> object:
        if next(count) >= calls:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, cut)


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        (fetch, "_check_space", 0),
        (fetch, "_fetch_part", 0),
        (fetch, "_write_own", 0),
        (fetch, "_repair", 0),
        (fetch, "_clear", 0),
        (sources, "copy_file", 0),
        (sources, "copy_file", 1),
        # three receipts of checked files, then that of the folder
        *((fetch, "write_json", calls) for calls in range(4)),
        # two files copied, two checked, three moved into the folder
        *((Path, "replace", calls) for calls in range(7)),
    ],
)
def test_mending_that_is_cut_off_counts_no_damaged_file_as_whole(
    owner: object,
    name: str,
    calls: int,
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add(monkeypatch, str(write(tmp_path / "pub")), known=False)
    folder = fetch.fetch("tiny", [])
    spoilt = spoil(folder)
    (folder / "config.json").unlink()
    fetch._write_receipt(
        folder,
        {path: entry for path, entry in read_receipt(folder).items() if path != "config.json"},
    )
    (folder / "note.txt").write_text("changed")
    with monkeypatch.context() as patch:
        cut_at(patch, owner, name, calls)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch("tiny", [])
    weights_now = (folder / "unet/model.safetensors").read_bytes()
    assert weights_now in (spoilt, WEIGHTS)  # what is there is never taken away
    assert ("unet/model.safetensors" in verify.damage("tiny")) == (weights_now == spoilt)
    assert not any(path.read_bytes() == spoilt for path in home.glob(".tiny.*/**/*.safetensors"))
    check_whole(fetch.fetch("tiny", []))
    fetch.fetch("tiny", [])
    check_whole(folder)


def test_what_was_made_ready_before_mending_was_cut_off_is_not_fetched_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Server(served("pub")) as server:
        add(monkeypatch, f"{server.url}/pub")
        folder = fetch.fetch("tiny", [])
        spoil(folder)
        with monkeypatch.context() as patch:
            cut_at(patch, fetch, "_repair", 0)
            with pytest.raises(KeyboardInterrupt):
                fetch.fetch("tiny", [])
        server.ranges.clear()
        check_whole(fetch.fetch("tiny", []))
        assert not server.ranges


def test_a_source_that_fails_takes_nothing_away(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(served("pub")) as server:
        add(monkeypatch, f"{server.url}/pub")
        folder = fetch.fetch("tiny", [])
        spoilt = spoil(folder)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        server.status["pub/unet/model.safetensors"] = 404
        assert "it has no such file" in refused("tiny")
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        assert before[folder / "unet/model.safetensors"] == spoilt
        assert find_weights("tiny", "prior.path") == (str(home / "tiny"), True)
        with pytest.raises(UserError, match="unet/model.safetensors is damaged or was changed"):
            verify.verify([])
        server.status.clear()
        check_whole(fetch.fetch("tiny", []))


def test_weights_put_there_by_hand_are_never_replaced(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, str(write(tmp_path / "pub")))
    tuned = BODY | {"unet/model.safetensors": save({"w": np.ones(50_000, np.float32)})}
    folder = write(home / "tiny", tuned)
    for lacks_another in (False, True):
        message = refused("tiny")
        assert message.startswith(
            f"{folder / 'unet/model.safetensors'}: not the published file, and not written by"
        )
        assert "move it away" in message and "prior.path=./FOLDER" in message
        assert (folder / "unet/model.safetensors").read_bytes() == tuned["unet/model.safetensors"]
        assert [path.name for path in home.iterdir()] == ["tiny"]
        if not lacks_another:
            (folder / "config.json").unlink()
    (folder / "unet/model.safetensors").rename(tmp_path / "tuned.safetensors")
    check_whole(fetch.fetch("tiny", []))


def test_what_is_sound_or_of_no_known_hash_stays_when_the_rest_is_fetched(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(served("pub")) as server:
        add(monkeypatch, f"{server.url}/pub")
        add(monkeypatch, f"{server.url}/pub", known=False, name="unknown")
        own = b'{"a": "of my own"}'
        write(home / "tiny", {"config.json": own})
        write(home / "unknown", {"unet/model.safetensors": WEIGHTS, "note.txt": b"mine\n"})
        fetch.fetch("tiny", [])
        fetch.fetch("unknown", [])
        assert [path for path, _ in server.ranges] == [
            "pub/unet/model.safetensors",
            "pub/config.json",
        ]
    assert (home / "tiny" / "config.json").read_bytes() == own and (
        home / "unknown" / "note.txt"
    ).read_text() == "mine\n"
    assert read_receipt(home / "tiny").keys() == {"unet/model.safetensors", "note.txt"}
    lines = verify.verify(["tiny", "unknown"]).splitlines()
    unsure = "1 as fetched (no published hash is known); not checked, as no hash of them is known"
    assert lines[0] == f"tiny: 1 files as published, {unsure}: config.json"
    assert lines[1] == f"unknown: 0 files as published, {unsure}: unet/model.safetensors"


def test_a_file_that_the_table_no_longer_has_is_forgotten(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, str(write(tmp_path / "pub")))
    folder = fetch.fetch("tiny", [])
    (folder / "old.txt").write_text("old")
    fetch.record(folder, "old.txt", "somewhere", sha(b"it was another"))
    assert verify.damage("tiny") == {"old.txt": "is damaged or was changed"}
    check_whole(fetch.fetch("tiny", []))
    assert not verify.damage("tiny")


def test_a_folder_that_is_a_link_to_another_disk_is_mended(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, str(write(tmp_path / "pub")))
    folder = fetch.fetch("tiny", [])
    spoil(folder)
    disk = folder.rename(tmp_path / "disk")
    folder.symlink_to(disk)
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.is_relative_to(home / ".tiny.new") and target.is_relative_to(folder):
            raise OSError(18, "Invalid cross-device link")
        return real(self, target)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", replace)
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_repair", full)
        assert refused("tiny").startswith(
            f"cannot write {folder}: No space left on device; free some space"
        )
    check_whole(fetch.fetch("tiny", []))
    assert folder.is_symlink() and (disk / "unet/model.safetensors").read_bytes() == WEIGHTS


def test_room_that_a_fetch_took_already_is_not_asked_for_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = File("model.safetensors", size=1000)
    monkeypatch.setitem(MODELS, "big", Model("", "", (Part((file,), ()),)))
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=500))
    assert "0.0 GB free" in refused("big")
    (home / ".big.part" / "source").mkdir(parents=True)
    (home / ".big.part" / "source" / "model.safetensors.partial").write_bytes(bytes(600))
    assert "it has no source" in refused("big")


def test_files_put_there_by_hand_are_taken_as_they_are(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch)
    write(home / "tiny", BODY | {"note.txt": b"ours\n"})
    assert find_weights("tiny", "prior.path") == (str(home / "tiny"), True)
    assert "not checked, as no hash of them is known: config.json" in verify.verify([])
    (home / "tiny" / "unet/model.safetensors").write_bytes(save({"w": np.zeros(5, np.float32)}))
    with pytest.raises(UserError, match="is not the published file"):
        verify.verify([])


def test_too_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    file = File("model.safetensors", size=10**18)
    monkeypatch.setitem(MODELS, "huge", Model("", "", (Part((file,), ()),)))
    assert "GB free" in refused("huge") and "VP3D_MODELS" in refused("huge")


def test_names_and_places() -> None:
    with pytest.raises(UserError, match="did you mean sdxl"):
        fetch.fetch("sdxl1", [])
    with pytest.raises(UserError, match="runwayml/stable-diffusion-v1-5 was removed from the hub"):
        find_weights("runwayml/stable-diffusion-v1-5", "prior.path")
    with pytest.raises(UserError, match="removed"):
        find_weights("stabilityai/stable-diffusion-2-1-base", "prior.path")
    with pytest.raises(UserError, match="is not a folder"):
        find_weights("no such thing", "prior.path")
    assert find_weights("owner/name", "prior.path") == ("owner/name", False)


def test_the_table_holds_nothing_that_runs() -> None:
    allowed = {".safetensors", ".json", ".txt"}
    for name, model in MODELS.items():
        assert {Path(file.path).suffix for file in model.files} | {
            Path(file.at_source).suffix for file in model.files
        } <= allowed
        assert model.licence and model.purpose and all(part.sources for part in model.parts), name
        assert len({file.path for file in model.files}) == len(model.files)
        for source in (source for part in model.parts for source in part.sources):
            assert not locate.REMOVED.fullmatch(source.removeprefix("hf:").partition("@")[0])
            assert source.startswith("https://") or locate.HUB_ID.fullmatch(
                source.removeprefix("hf:").partition("@")[0]
            )
        assert all(
            len(file.sha256) in (0, 64) and not Path(file.path).is_absolute()
            for file in model.files
        )


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add(monkeypatch)
    assert main(["models", "fetch", "tiny", "--from", str(write(tmp_path / "here"))]) == 0
    assert capsys.readouterr().out == f"{models_folder() / 'tiny'}\n"
    assert main(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert "tiny" in out and "fetched" in out and "CreativeML OpenRAIL-M" in out
    assert main(["models", "list", "sd15"]) == 0
    assert "hf:stable-diffusion-v1-5/stable-diffusion-v1-5@" in capsys.readouterr().out
    assert main(["models", "verify", "tiny"]) == 0
    assert (
        main(["models", "fetch"]) == 2
        and main(["models", "convert", "tiny"]) == 2
        and main(["models", "eat"]) == 2
    )


def test_one_model_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add(monkeypatch, str(tmp_path / "nothing"), name="first")
    add(monkeypatch, str(write(tmp_path / "here")), name="second")
    add(monkeypatch, str(tmp_path / "here"), name="third")
    assert main(["models", "fetch", "first", "second", "thrid", "third", "second"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "".join(f"{models_folder() / name}\n" for name in ("second", "third"))
    for name in ("second", "third"):
        check_whole(models_folder() / name)
    last = printed.err.splitlines()[-1]
    reason = f"{tmp_path / 'nothing'}: there is no such folder. Give another source"
    assert last.startswith(f"vp3d: cannot fetch 2 of 4 models. first: {reason}")
    assert "; thrid: there is no model called 'thrid'; did you mean third?" in last
    assert last.endswith(". Fetched: second, third")
    assert main(["models", "fetch", "first", "thrid"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("vp3d: cannot fetch 2 of 2 models. first: ") and "Fetched" not in last
    assert main(["models", "fetch", "first"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("vp3d: cannot fetch first: ")


def test_nor_does_one_whose_place_is_taken(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        add(monkeypatch, str(write(tmp_path / "here")), name=name)
    home.mkdir()
    (home / ".first.new").write_text("")
    assert main(["models", "fetch", "first", "second"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        "cannot fetch 1 of 2 models. first: " in last
        and ".first.new" in last
        and last.endswith("Fetched: second")
    )


def test_unavailable_is_one_line() -> None:
    assert str(Unavailable("a\n  b")) == "a b"


def test_the_server_itself() -> None:
    with Server({"a": b"hello"}) as server:
        request = urllib.request.Request(f"{server.url}/a", headers={"Range": "bytes=2-"})
        with urllib.request.urlopen(request) as reply:
            assert (reply.status, reply.read()) == (206, b"llo")
