"""The end of a log of a command-line run, as the gallery reads it."""

import json
from pathlib import Path

import pytest

from vp3d.serve.gallery import first_time, last_done, last_events

DONE = {"time": 5.0, "kind": "done", "loss": 0.5}


@pytest.mark.parametrize("damaged", ['{"kind": "done"}', '{"kind": "done", "time": "x"}', '"done"'])
def test_a_done_event_without_a_time_is_left_out(damaged: str, tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text(f"{json.dumps(DONE)}\n{damaged}\n")
    assert last_done(last_events(log)) == DONE
    log.write_text(f"{damaged}\n")
    assert last_done(last_events(log)) == {} and first_time(log) is None
