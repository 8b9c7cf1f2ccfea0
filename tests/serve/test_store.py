"""The job store: states, claims by lock, keys, and what happens after deaths."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

from vp3d.jobs import log
from vp3d.jobs.store import (
    MAX_DEATHS,
    Key,
    KeyReusedError,
    NewJob,
    QueueFullError,
    StateError,
    Store,
)
from vp3d.jobs.work import Listener
from vp3d.runs.events import Stage, Step

CUBE = NewJob({"prompt": "a red cube"})


def submit(store: Store, **fields) -> str:
    return store.submit([NewJob({"prompt": "a red cube"}, **fields)])[0][0].id


def test_jobs_are_claimed_by_priority_then_in_order(tmp_path):
    store = Store(tmp_path)
    first, second, urgent = submit(store), submit(store), submit(store, priority=5)
    claims = [store.claim("w") for _ in range(4)]
    assert [claim and claim.job.id for claim in claims] == [urgent, first, second, None]


def test_a_held_job_is_not_claimed_again_and_a_released_one_is(tmp_path):
    store = Store(tmp_path)
    job_id = submit(store)
    claim = store.claim("w")
    assert store.claim("v") is None
    claim.lock.release()  # as the death of the worker does
    again = store.claim("v")
    assert (again.job.id, again.job.attempts, again.job.status) == (job_id, 2, "running")


def hold(data: Path, ready) -> None:
    claim = Store(data).claim("child")
    ready.set()
    threading.Event().wait(60 if claim else 0)


def test_the_death_of_a_process_frees_its_job(tmp_path):
    store = Store(tmp_path)
    job_id = submit(store)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    child = context.Process(target=hold, args=(tmp_path, ready))
    child.start()
    assert ready.wait(30)
    assert store.claim("w") is None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert store.claim("w").job.id == job_id


def test_three_deaths_without_a_step_fail_the_job_with_the_last_words(tmp_path):
    store = Store(tmp_path)
    job_id = submit(store)
    for _ in range(MAX_DEATHS):
        claim = store.claim("w")
        assert claim is not None
        store.note_death("w", ["last words"])
        claim.lock.release()
    assert store.claim("w") is None
    job = store.find(job_id)
    assert (job.status, job.error["code"]) == ("failed", "worker_crashed")
    assert job.error["stderr"] == ["last words"]


def test_a_new_step_forgives_earlier_deaths(tmp_path):
    store = Store(tmp_path)
    job_id = submit(store)
    for step in range(MAX_DEATHS + 3):
        claim = store.claim("w")
        store.progressed(job_id, step + 1)
        claim.lock.release()
    assert store.find(job_id).status == "running"


def test_drawn_pictures_and_each_new_step_forgive_earlier_deaths(tmp_path):
    store = Store(tmp_path)
    job_id = submit(store)
    stage = Stage("coarse", "", 100)
    marks = []
    refine = [stage, Stage("refine", "", 50), Step("refine", 2, 50, {})]
    for heard in ([], [stage], [stage], [stage, Step("coarse", 4, 100, {})], refine):
        claim = store.claim("w")
        listener = Listener(store, claim, threading.Event(), "cpu")
        for event in heard:
            listener.hear(event)
        claim.lock.release()
        job = store.find(job_id)
        marks.append((job.deaths, job.mark))
    assert marks == [(0, 0), (0, 1), (1, 1), (0, 5), (0, 1_000_000_002)]


def test_jobs_are_listed_by_when_they_were_made_and_page_by_page(tmp_path):
    store = Store(tmp_path)
    job_id = submit(store)
    made = store.find(job_id).created
    request = json.dumps({"prompt": "a run of the command line"})
    for name, created in (("older", made - 60.0), ("oldest", made - 90.0), ("twin", made - 60.0)):
        store.adopt(name, "succeeded", {"request": request, "created": created})
    listed = store.jobs()
    assert [job.folder or job.id for job in listed] == [job_id, "twin", "older", "oldest"]
    paged, before = [], None
    while page := store.jobs(before=before, limit=1):
        paged += page
        before = (page[-1].created, page[-1].seq)
    assert [job.id for job in paged] == [job.id for job in listed]


def test_a_page_of_jobs_is_read_in_the_order_of_an_index(tmp_path):
    Store(tmp_path).connection().execute("DROP INDEX by_created")  # a store of an older version
    store = Store(tmp_path)
    job = store.find(submit(store))
    asked: list[str] = []
    store.connection().set_trace_callback(asked.append)
    store.jobs(before=(job.created, job.seq))
    store.connection().set_trace_callback(None)
    (query,) = asked
    plan = [row[3] for row in store.connection().execute(f"EXPLAIN QUERY PLAN {query}")]
    assert plan == ["SCAN jobs USING INDEX by_created"]


def test_a_key_gives_the_first_jobs_and_refuses_another_body(tmp_path):
    store = Store(tmp_path)
    first, replayed = store.submit([CUBE, CUBE], Key("k", "digest"))
    again, replayed_again = store.submit([CUBE, CUBE], Key("k", "digest"))
    assert [job.id for job in first] == [job.id for job in again]
    assert (replayed, replayed_again) == (False, True)
    with pytest.raises(KeyReusedError):
        store.submit([CUBE], Key("k", "other"))


def test_a_full_queue_takes_nothing_of_a_batch(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(QueueFullError):
        store.submit([CUBE] * 3, max_queued=2)
    assert store.counts() == {}


def test_a_paused_queue_holds_queued_jobs_but_not_lost_ones(tmp_path):
    store = Store(tmp_path)
    lost = submit(store)
    store.claim("w").lock.release()
    submit(store)
    store.pause(True)
    assert store.claim("w").job.id == lost
    assert store.claim("w") is None
    store.pause(False)
    assert store.claim("w") is not None


def test_a_change_from_another_state_is_refused(tmp_path):
    store = Store(tmp_path)
    job_id = submit(store)
    with pytest.raises(StateError, match="queued"):
        store.update(job_id, ("running",), status="cancelling")


def test_a_cancelled_job_whose_worker_is_gone_is_swept(tmp_path):
    store = Store(tmp_path)
    job_id = submit(store)
    claim = store.claim("w")
    store.update(job_id, ("running",), status="cancelling", want="cancel")
    assert store.sweep() == []
    claim.lock.release()
    assert [job.status for job in store.sweep()] == ["cancelled"]


def test_a_deleted_job_is_known_as_deleted(tmp_path):
    store = Store(tmp_path)
    job = store.find(submit(store))
    with pytest.raises(StateError):
        store.delete(job)
    store.release(store.claim("w"), "failed")
    store.delete(store.find(job.id))
    assert store.find(job.id) is None
    assert store.was_deleted(job.id)


def test_a_cut_line_is_closed_and_counts(tmp_path):
    log.append(tmp_path, "step", {"n": 1})
    with (tmp_path / log.LOG_FILE).open("ab") as stream:
        stream.write(b'{"time": 1, "eve')
    reader = log.LogReader(tmp_path / log.LOG_FILE)
    assert [line.number for line in reader.read()] == [1]
    log.append(tmp_path, "step", {"n": 2})
    assert [(line.number, line.event) for line in reader.read()] == [(2, ""), (3, "step")]


def test_a_state_is_logged_once_for_each_revision(tmp_path):
    def state():
        return "status", {"status": "running"}

    assert log.sync_state(tmp_path, 1, state)
    assert not log.sync_state(tmp_path, 1, state)
    assert log.sync_state(tmp_path, 3, state)
    lines = log.LogReader(tmp_path / log.LOG_FILE).read()
    assert [line.revision for line in lines] == [1, 3]
