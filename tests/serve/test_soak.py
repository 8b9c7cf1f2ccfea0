"""The acceptance commands: one for each row, and how their figures are worked out."""

from __future__ import annotations

import argparse
import http.server
import json
import re
import threading
from datetime import UTC, datetime

import pytest

from tests.helpers.service import ROOT, RunningService
from tests.serve import soak, soak_jobs

pytest.importorskip("fastapi", reason="needs the extra `serve`: pip install 'vp3d[serve]'")
ROWS = {*(f"A{n}" for n in range(1, 9)), *(f"B{n}" for n in range(1, 8))}


def test_every_row_of_the_acceptance_has_one_command_that_is_documented():
    rows = [row for rows, _ in soak.COMMANDS.values() for row in rows.split()]
    assert sorted(rows) == sorted(ROWS)
    usage = set(re.findall(r"tests\.serve\.soak (\w+)", soak.__doc__ or ""))
    page = (ROOT / "docs" / "how_to" / "serve.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| [AB]\d[^|]* \| `(\w+)", page, re.M))
    assert usage == documented == set(soak.COMMANDS)


def test_a_command_prints_its_row_its_verdict_and_its_figures(monkeypatch, capsys):
    def row(arguments, root):
        assert root.is_dir()
        return {"figure": 3, "ok": arguments.seed == 1}

    monkeypatch.setitem(soak.COMMANDS, "idle", ("A8", row))
    assert soak.main(["idle", "--seed", "1"]) == 0
    assert soak.main(["idle"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith('A8 idle PASS {"figure": 3')
    assert second.startswith("A8 idle FAIL")


def test_the_error_of_an_estimate_is_taken_after_a_quarter_of_the_time(tmp_path):
    began = 1_000_000.0
    lines = [
        {"time": began, "event": "stage", "data": {"eta_s": 50.0}},
        {"time": began + 20, "event": "step", "data": {"eta_s": 60.0}},  # 80 s are left
        {"time": began + 30, "event": "step", "data": {"eta_s": 10.0}},
        {"time": began + 99, "event": "warning", "data": {"message": "m"}},
    ]
    log = tmp_path / "events.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    finished = datetime.fromtimestamp(began + 100, UTC).isoformat()
    assert soak_jobs.eta_error(log, finished) == pytest.approx(20 / 80)


def test_what_a_stream_repeats_is_heard(tmp_path):
    class Repeats(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            after = int(self.headers["Last-Event-ID"])
            events = [
                f"id: {n}\nevent: step\ndata: {{}}\n\n" for n in (after, after + 1, after + 2)
            ]
            self.send_response(200)
            self.end_headers()
            self.wfile.write("".join(events).encode())

        def log_message(self, *_) -> None:
            """Be quiet."""

    service = RunningService(tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", service.port), Repeats) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = [soak.listen(service, "job_x", 4, count) for count in (2, None)]
        server.shutdown()
    assert [[event.id for event in events] for events in found] == [[4, 5], [4, 5, 6]]
    assert soak.listen(service, "job_x", 4, None) == []  # nobody answers


def test_steps_below_a_checkpoint_are_counted(tmp_path):
    events = [("step", 5), ("checkpoint", 10), ("step", 7), ("step", 12), ("checkpoint", 20)]
    (tmp_path / "run").mkdir()
    text = "".join(json.dumps({"kind": kind, "step": step}) + "\n" for kind, step in events)
    (tmp_path / "run" / "events.jsonl").write_text(text)
    assert soak.steps_below_checkpoint(tmp_path) == 1


def test_the_share_of_the_guards_and_of_the_idle_server(tmp_path):
    arguments = argparse.Namespace()
    found = soak_jobs.guards(arguments, tmp_path / "a")
    assert found["ok"], found
    assert soak_jobs.idle(arguments, tmp_path / "b")["ok"]
