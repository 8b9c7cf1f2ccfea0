"""The multimodal judge against a loopback server that answers well, badly, late or not at all."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from vp3d.metrics import hallucination_judge, scorers
from vp3d.metrics.hallucination_judge import MultimodalJudge, in_words
from vp3d.metrics.rubric import KINDS, SCHEMA, Element, as_json, read_answer
from vp3d.metrics.scorers import KEY_VARIABLE, ChatEndpoint

GOOD = '{"elements": [{"what": "red area left", "kind": "added", "size": "small"}], "score": 2}'
NONE = '{"elements": [], "score": 1}'
A = np.full((32, 32, 3), 90, np.uint8)
B = np.full((32, 32, 3), 180, np.uint8)


class Server:
    """Answers with the next of `answers`: (status, text or bytes, headers); the last one stays."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str | bytes, dict[str, str]]] = [(200, GOOD, {})]
        self.asked: list[dict] = []
        self.keys: list[str | None] = []
        self.before: Callable[[], None] = lambda: None
        self.service = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.service.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.service.server_port}/v1"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append(json.loads(body))
                outer.keys.append(self.headers.get("Authorization"))
                outer.before()
                status, text, headers = outer.answers[0]
                if len(outer.answers) > 1:
                    outer.answers.pop(0)
                if status == 0:
                    self.connection.close()
                    return
                data = text
                if isinstance(text, str):
                    data = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):  # the client gave up
                    self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.service.shutdown()
    made.service.server_close()


def judge_of(server: Server, cache: Path | None = None, timeout_s: float = 5.0) -> MultimodalJudge:
    return MultimodalJudge(ChatEndpoint(server.url, "a-model", timeout_s), cache, lambda _: None)


def test_both_orders_are_asked_with_two_large_pictures_and_a_schema(server: Server) -> None:
    server.answers = [(200, GOOD, {}), (200, GOOD.replace("2}", "4}"), {})]
    found = judge_of(server).score(A, B)
    assert (found.score, found.disagreement, found.reason) == (3.0, 2.0, "")
    assert in_words(found.elements) == "added red area left (small)"
    first, second = (body["messages"][0]["content"] for body in server.asked)
    assert len(first) == 3 and first[1:] == second[:0:-1] and first[1] != first[2]
    assert server.asked[0]["response_format"]["json_schema"]["schema"] == SCHEMA
    assert hallucination_judge._sized(A).size == (256, 256)
    assert hallucination_judge._sized(np.zeros((3000, 1500, 3), np.uint8)).size == (512, 1024)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"Here is my answer {{as asked}}: {GOOD} I hope it helps {{}}",
        GOOD.replace('"score": 2', '"score": 2.0'),
        f'{{"note": "no score"}} {GOOD}',
        GOOD.replace("red area left", 'a \\"red\\" {area} left'),
        "\ufeff" + GOOD,
        "[" * 5000 + GOOD,
    ],
)
def test_an_answer_is_found_in_what_is_around_it(text: str) -> None:
    found = read_answer(text)
    assert found.score == 2.0 and len(found.elements) == 1
    assert read_answer(as_json(found)) == found


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no JSON object"),
        ("the score is 4", "no JSON object"),
        ('{"elements": [], "score": 0}', "between 1 and 5"),
        ('{"elements": [], "score": 6}', "between 1 and 5"),
        ('{"elements": [], "score": 1e99}', "between 1 and 5"),
        ('{"elements": [], "score": NaN}', "no JSON object|not a number|between"),
        ('{"elements": [], "score": "3"}', "not a number"),
        ('{"elements": [], "score": true}', "not a number"),
        ('{"elements": [], "score": null}', "not a number"),
        ('{"elements": [], "score": 3}', "lists none"),
        ('{"score": 3}', "does not list"),
        ('{"elements": "none", "score": 1}', "does not list"),
        ('{"elements": [1], "score": 2}', "does not say what"),
        (GOOD.replace("added", "grown"), "kind of an element"),
        (GOOD.replace("small", "tiny"), "kind of an element"),
        (GOOD[:-1], "no JSON object"),
        ("{" * 5000, "no JSON object"),
        ('{"a":' * 3000 + "1" + "}" * 3000, "no JSON object|not a number"),
    ],
)
def test_an_answer_that_is_not_valid_says_why(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        read_answer(text)


def test_a_bad_answer_is_asked_for_again_with_the_fault(server: Server) -> None:
    server.answers = [(200, "It is a 2.", {}), (200, GOOD, {})]
    found = judge_of(server).score(A, B)
    assert found.score == 2.0 and len(server.asked) == 3
    assert "it has no JSON object" in server.asked[1]["messages"][0]["content"][0]["text"]


def test_there_is_no_default_score(server: Server) -> None:
    server.answers = [(200, '{"elements": [], "score": 7}', {})]
    found = judge_of(server).score(A, B)
    assert found.score is None and len(server.asked) == 3
    assert "no valid answer in 3 tries" in found.reason and "between 1 and 5" in found.reason


def test_a_server_without_schemas_is_asked_without_once(server: Server) -> None:
    server.answers = [(400, b"{}", {}), (200, GOOD, {})]
    judge = judge_of(server)
    assert judge.score(A, B).score == 2.0 and not judge.structured
    assert ["response_format" in body for body in server.asked] == [True, False, False]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_waited_for(server: Server, status: int) -> None:
    waits: list[float] = []
    server.answers = [(status, b"", {"Retry-After": "5"}), (status, b"", {}), (200, NONE, {})]
    judge = MultimodalJudge(ChatEndpoint(server.url, "m", 5.0), None, waits.append)
    assert judge.score(A, B).score == 1.0 and waits == [5.0, 4.0]
    server.answers = [(status, b"", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})]
    waits.clear()
    found = judge.score(A, B)
    assert found.score is None and waits == [2.0, 4.0, 8.0] and "gave no answer" in found.reason


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "x", "999999"])
def test_a_strange_retry_after_does_not_stop_it(server: Server, value: str) -> None:
    waits: list[float] = []
    server.answers = [(429, b"", {"Retry-After": value}), (200, NONE, {})]
    judge = MultimodalJudge(ChatEndpoint(server.url, "m", 5.0), None, waits.append)
    assert judge.score(A, B).score == 1.0 and waits == [60.0 if value == "999999" else 2.0]


@pytest.mark.parametrize(
    "answer",
    [
        (0, b"", {}),
        (404, b"gone", {}),
        (401, b"", {}),
        (200, b"", {}),
        (200, b"<html>", {}),
        (200, b'{"choices": []}', {}),
        (200, b"x" * 200_000, {}),
        (302, b"", {"Location": "http://127.0.0.2:9/"}),
    ],
)
def test_every_fault_of_a_server_ends_in_a_reason(
    server: Server, answer: tuple[int, bytes, dict[str, str]]
) -> None:
    server.answers = [answer]
    found = judge_of(server).score(A, B)
    assert found.score is None and "\n" not in found.reason and server.url in found.reason


def test_an_answer_of_more_than_the_limit_is_a_reason(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorers, "MAX_ANSWER_BYTES", 4000)
    server.answers = [(200, GOOD, {})]
    assert judge_of(server).score(A, B).score == 2.0
    server.answers = [(200, GOOD + " " * 4000, {})]
    found = judge_of(server).score(A, B)
    assert found.score is None and "gave no answer" in found.reason


def test_damaged_answers_end_in_a_grade_or_a_reason(server: Server) -> None:
    """Cut, doubled, mixed up and with random bytes, in the model's text and in the server's."""
    rng = np.random.default_rng(0)
    good = GOOD.encode()
    whole = json.dumps({"choices": [{"message": {"content": GOOD}}]}).encode()
    graded = 0
    for number in range(60):
        data = bytearray(good if number % 2 else whole)
        for _ in range(int(rng.integers(1, 3))):
            at, kind = int(rng.integers(len(data))), int(rng.integers(6))
            if kind == 0:
                data[at] = int(rng.integers(256))
            elif kind == 1:
                del data[at : at + int(rng.integers(1, 20))]
            elif kind == 2:
                data[at:at] = data[: int(rng.integers(30))]
            elif kind == 3:
                data[at:] = data[at:][::-1]
            else:
                data = bytearray(b" " * kind) + data + b"\n" * kind
            data = data or bytearray(b"{")
        text: str | bytes = data.decode("utf-8", "replace") if number % 2 else bytes(data)
        server.answers = [(200, text, {})]
        found = judge_of(server).score(A, B)
        assert (found.score is None) != (found.reason == "") and "\n" not in found.reason
        assert found.score is None or 1.0 <= found.score <= 5.0
        graded += found.score is not None
    assert 0 < graded < 60


def test_a_slow_server_ends_in_a_reason(server: Server) -> None:
    server.before = lambda: time.sleep(1.0)
    found = judge_of(server, timeout_s=0.2).score(A, B)
    assert found.score is None and "gave no answer" in found.reason


def test_answers_are_kept_without_the_key(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "SECRET-7")
    first = judge_of(server, tmp_path).score(A, B)
    asked = len(server.asked)
    assert judge_of(server, tmp_path).score(A, B) == first and len(server.asked) == asked == 2
    assert server.keys == ["Bearer SECRET-7"] * 2
    files = list(tmp_path.iterdir())
    assert len(files) == 2 and not any("SECRET" in file.read_text() for file in files)
    files[0].write_text('{"score": 9}')
    assert judge_of(server, tmp_path).score(A, B) == first and len(server.asked) == 3
    assert judge_of(server, tmp_path).score(A, A).score == 2.0 and len(server.asked) > 3


def test_the_schema_and_the_reader_agree() -> None:
    items = SCHEMA["properties"]["elements"]["items"]["properties"]
    assert tuple(items["kind"]["enum"]) == KINDS
    for kind in items["kind"]["enum"]:
        for size in items["size"]["enum"]:
            row = {"what": "x", "kind": kind, "size": size}
            text = json.dumps(
                {"elements": [row], "score": SCHEMA["properties"]["score"]["maximum"]}
            )
            assert read_answer(text).elements == (Element("x", kind, size),)
