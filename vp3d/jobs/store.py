"""The job store: what is wanted, in one SQLite file below the data folder.

What is done is in the run folders. A job that runs is held by a lock file (`flock`), which the
system frees when its worker dies: that is the only sign of life, and the whole recovery. Every
change of a job is one transaction that is synced to disk before anybody hears of it, and raises the
job's `revision`; vp3d/jobs/log.py repeats the newest revision in the job's log. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vp3d.errors import VP3DError
from vp3d.jobs.locks import Lock, try_lock
from vp3d.jobs.schema import SCHEMA
from vp3d.system.files import disk_errors, parse_json

STORE_FILE = "jobs.sqlite"
ACTIVE = ("queued", "running", "awaiting_choice", "cancelling")
FINAL = ("succeeded", "failed", "cancelled")
MAX_DEATHS = 3  # deaths of a worker in a job, each without a new step, after which the job fails
KEY_AGE_S = 24 * 3600.0  # how long an idempotency key is remembered
CHOICE_AGE_S = 24 * 3600.0  # how long a job waits for a choice before it takes the best candidate
BUSY_S = 30.0  # how long a transaction waits for another one


class StateError(VP3DError):
    """The job is in a state in which this cannot be done."""

    code = "wrong_state"


class KeyReusedError(VP3DError):
    """An idempotency key came again with another body."""

    code = "key_reused"


class QueueFullError(VP3DError):
    """As many jobs wait as may wait."""

    code = "queue_full"


@dataclass(frozen=True)
class Job:
    """One row of the store. Times are seconds since 1970."""

    seq: int
    id: str
    kind: str  # generate or export
    status: str
    detail: str
    request: dict[str, Any]
    folder: str  # of a run that the command line made, relative to the data folder; else ""
    parent: str  # the job whose run an export continues
    batch: str
    priority: int
    attempts: int
    deaths: int
    mark: int
    want: str  # "", cancel or keep
    choice: int | None
    worker: str
    revision: int
    change: int
    created: float
    started: float | None
    finished: float | None
    error: dict[str, Any] | None
    result: dict[str, Any]

    @classmethod
    def of(cls, row: sqlite3.Row) -> Job:
        """The job of a row."""
        values = dict(row)
        for name in ("request", "error", "result"):
            values[name] = parse_json(values[name]) if values[name] else None
        return cls(**{**values, "result": values["result"] or {}})


@dataclass(frozen=True)
class NewJob:
    """A job to be stored."""

    request: Mapping[str, Any]
    kind: str = "generate"
    parent: str = ""
    batch: str = ""
    priority: int = 0


@dataclass(frozen=True)
class Claim:
    """A job that this process may work on, and the lock that says so."""

    job: Job
    lock: Lock


@dataclass(frozen=True)
class Key:
    """An idempotency key of a client, and the SHA-256 of the body that it came with."""

    name: str
    digest: str


class Store:
    """The jobs below a data folder; usable from any thread and any process of one machine."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.local = threading.local()
        with disk_errors(data / STORE_FILE, "or choose another folder with --data"):
            (data / "jobs").mkdir(parents=True, exist_ok=True)
        with self.transaction() as db:
            for statement in SCHEMA:
                db.execute(statement)

    def folder(self, job_id: str) -> Path:
        """The folder of a job: its lock, its log and its runs."""
        return self.data / "jobs" / job_id

    def connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        found: sqlite3.Connection | None = getattr(self.local, "db", None)
        if found is None:
            found = sqlite3.connect(self.data / STORE_FILE, timeout=BUSY_S, isolation_level=None)
            found.row_factory = sqlite3.Row
            found.execute("PRAGMA journal_mode=WAL")
            found.execute("PRAGMA synchronous=FULL")
            self.local.db = found
        return found

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: all of it is stored, or nothing."""
        db = self.connection()
        with disk_errors(self.data / STORE_FILE, "then try again"):
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise OSError(f"the job store cannot be written ({error})") from error
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def submit(
        self, jobs: Iterable[NewJob], key: Key | None = None, max_queued: int = 1 << 30
    ) -> tuple[list[Job], bool]:
        """Store new jobs, or find those that the same key stored before.

        Args:
            jobs: what is wanted.
            key: makes a repeated call harmless.
            max_queued: most jobs that may wait, these included.

        Returns:
            The jobs, and whether they are those of an earlier call.

        Raises:
            KeyReusedError: the key came with another body before.
            QueueFullError: too many would wait.
        """
        new, now = list(jobs), time.time()
        with self.transaction() as db:
            if key is not None:
                db.execute("DELETE FROM keys WHERE created < ?", (now - KEY_AGE_S,))
                stored = db.execute("SELECT * FROM keys WHERE name = ?", (key.name,)).fetchone()
                if stored is not None:
                    return self._replayed(db, stored, key), True
            waiting = db.execute("SELECT COUNT(*) FROM jobs WHERE status = 'queued'").fetchone()[0]
            if waiting + len(new) > max_queued:
                raise QueueFullError(f"{waiting} jobs wait already; at most {max_queued} may")
            ids = [self._insert(db, job, now) for job in new]
            if key is not None:
                values = (key.name, key.digest, " ".join(ids), now)
                db.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", values)
            return [self._row(db, job_id) for job_id in ids], False

    def _replayed(self, db: sqlite3.Connection, stored: sqlite3.Row, key: Key) -> list[Job]:
        if stored["digest"] != key.digest:
            raise KeyReusedError("this Idempotency-Key came with another body before")
        return [self._row(db, job_id) for job_id in stored["jobs"].split()]

    def _insert(self, db: sqlite3.Connection, job: NewJob, now: float) -> str:
        job_id = f"job_{uuid.uuid4().hex[:16]}"
        db.execute(
            "INSERT INTO jobs (id, kind, status, request, parent, batch, priority, created, change)"
            " VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?)",
            (
                *(job_id, job.kind, json.dumps(job.request), job.parent, job.batch, job.priority),
                *(now, self._next_change(db)),
            ),
        )
        return job_id

    @staticmethod
    def _next_change(db: sqlite3.Connection) -> int:
        db.execute("UPDATE counters SET value = value + 1 WHERE name = 'change'")
        return int(db.execute("SELECT value FROM counters WHERE name = 'change'").fetchone()[0])

    @staticmethod
    def _row(db: sqlite3.Connection, job_id: str) -> Job:
        row = db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return Job.of(row)

    def find(self, job_id: str) -> Job | None:
        """A job by its id; None if there is none, or it was deleted."""
        row = self.connection().execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return None if row is None else Job.of(row)

    def was_deleted(self, job_id: str) -> bool:
        """Whether a job of this id was deleted."""
        found = self.connection().execute("SELECT 1 FROM deleted WHERE id = ?", (job_id,))
        return found.fetchone() is not None

    def jobs(
        self,
        status: str = "",
        words: str = "",
        batch: str = "",
        before: tuple[float, int] | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Jobs, newest first.

        Args:
            status: only those in this state; "" for all.
            words: only those whose prompt contains this; "" for all.
            batch: only those of this batch; "" for all.
            before: only those after the job with these `created` and `seq`.
            limit: at most so many.

        Returns:
            The jobs.
        """
        last, number = before or (None, None)
        rows = self.connection().execute(
            "SELECT * FROM jobs WHERE (? = '' OR status = ?) AND (? = '' OR batch = ?)"
            " AND (? = '' OR instr(lower(json_extract(request, '$.prompt')), lower(?)) > 0)"
            " AND (? IS NULL OR (created, seq) < (?, ?)) ORDER BY created DESC, seq DESC LIMIT ?",
            (status, status, batch, batch, words, words, *(last, last, number), limit),
        )
        return [Job.of(row) for row in rows]

    def changed_since(self, change: int, limit: int = 200) -> list[Job]:
        """Jobs that changed after the given number of the store's change counter, in order."""
        rows = self.connection().execute(
            "SELECT * FROM jobs WHERE change > ? ORDER BY change LIMIT ?", (change, limit)
        )
        return [Job.of(row) for row in rows]

    def counts(self, batch: str = "") -> dict[str, int]:
        """How many jobs are in each state, of one batch or of all."""
        rows = self.connection().execute(
            "SELECT status, COUNT(*) FROM jobs WHERE (? = '' OR batch = ?) GROUP BY status",
            (batch, batch),
        )
        return dict(map(tuple, rows.fetchall()))

    def queue_position(self, job: Job) -> int | None:
        """How many queued jobs will be claimed before this one; None if it does not wait."""
        if job.status != "queued":
            return None
        found = self.connection().execute(
            "SELECT COUNT(*) FROM jobs WHERE status = 'queued'"
            " AND (priority > ? OR (priority = ? AND seq < ?))",
            (job.priority, job.priority, job.seq),
        )
        return int(found.fetchone()[0])

    def update(self, job_id: str, allowed: Iterable[str], **values: Any) -> Job:
        """Change a job that is in one of the `allowed` states.

        Args:
            job_id: the job.
            allowed: states in which the change may happen.
            values: columns and their new values.

        Returns:
            The job as it is now.

        Raises:
            StateError: it is in another state, or it is gone.
        """
        with self.transaction() as db:
            return self._change(db, job_id, allowed, values)

    def _change(
        self, db: sqlite3.Connection, job_id: str, allowed: Iterable[str], values: dict[str, Any]
    ) -> Job:
        row = db.execute("SELECT status FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise StateError(f"there is no job {job_id}")
        if row["status"] not in allowed:
            raise StateError(f"the job is {row['status'].replace('_', ' ')}")
        for name in ("request", "error", "result"):
            if isinstance(values.get(name), dict):
                values[name] = json.dumps(values[name])
        sets = "".join(f"{name} = ?, " for name in values)
        db.execute(
            f"UPDATE jobs SET {sets}revision = revision + 1, change = ? WHERE id = ?",
            (*values.values(), self._next_change(db), job_id),
        )
        return self._row(db, job_id)

    def claim(self, worker: str) -> Claim | None:
        """Take the first job that waits or whose worker has died; None if there is none.

        The caller holds the job until it releases the lock or dies.
        """
        waiting = "status IN ('running', 'cancelling') OR (status = 'queued' AND NOT ?)"
        query = f"SELECT * FROM jobs WHERE {waiting} ORDER BY priority DESC, seq LIMIT 1000"
        if not self.connection().execute(query, (self.is_paused(),)).fetchone():
            return None
        with self.transaction() as db:
            for row in db.execute(query, (self.is_paused(),)).fetchall():
                if row["folder"]:  # a run of the command line
                    continue
                lock = try_lock(self.folder(row["id"]) / ".job.lock")
                if lock is None:
                    continue
                taken = self._take(db, Job.of(row), worker)
                if taken is not None:
                    return Claim(taken, lock)
                lock.release()
        return None

    def _take(self, db: sqlite3.Connection, job: Job, worker: str) -> Job | None:
        """The job as claimed; None if it ends here instead: cancelled, or failed too often."""
        if job.status == "cancelling" and job.want == "cancel":
            self._change(db, job.id, ("cancelling",), {"status": "cancelled", **_ended()})
            return None
        lost = job.status == "running" and job.worker != ""
        deaths = job.deaths + 1 if lost else job.deaths
        if deaths >= MAX_DEATHS:
            error = {
                "code": "worker_crashed",
                "title": "The worker crashed",
                "status": 500,
                "detail": f"its worker died {deaths} times without one more step",
                "stderr": job.result.get("stderr", []),
            }
            self._change(
                db, job.id, (job.status,), {"status": "failed", "error": error, **_ended()}
            )
            return None
        status = "cancelling" if job.status == "cancelling" else "running"
        values = {
            "status": status,
            "detail": "",
            "worker": worker,
            "attempts": job.attempts + 1,
            "deaths": deaths,
            "started": job.started or time.time(),
            "error": None,
        }
        return self._change(db, job.id, (job.status,), values)

    def progressed(self, job_id: str, mark: int) -> None:
        """Note that a job came farther than ever before: earlier deaths of workers are forgiven."""
        with self.transaction() as db:
            db.execute(
                "UPDATE jobs SET deaths = 0, mark = ? WHERE id = ? AND mark < ?",
                (mark, job_id, mark),
            )

    def release(self, claim: Claim, status: str, **values: Any) -> Job:
        """End the work on a claimed job and free it.

        Args:
            claim: from `claim`.
            status: the new state; "running" leaves it to the next worker.
            values: other columns and their new values.

        Returns:
            The job as it is now.
        """
        ended = _ended() if status in FINAL else {}
        values = {"status": status, "worker": "", "detail": "", **values, **ended}
        try:
            return self.update(claim.job.id, ACTIVE, **values)
        finally:
            claim.lock.release()

    def sweep(self) -> list[Job]:
        """End what needs no worker; the jobs that changed.

        Cancelled jobs whose worker is gone are cancelled, and a job that has waited
        `CHOICE_AGE_S` for a choice is queued with the best candidate.
        """
        rows = self.connection().execute(
            "SELECT * FROM jobs WHERE (status = 'cancelling' AND want = 'cancel')"
            " OR (status = 'awaiting_choice' AND finished < ?)",
            (time.time() - CHOICE_AGE_S,),
        )
        changed = []
        for job in map(Job.of, rows.fetchall()):
            lock = try_lock(self.folder(job.id) / ".job.lock")
            if lock is None:
                continue
            try:
                if job.status == "cancelling":
                    values = {"status": "cancelled", "worker": "", **_ended()}
                    changed.append(self.update(job.id, ("cancelling",), **values))
                else:
                    values = {"status": "queued", "choice": -1, "finished": None}
                    changed.append(self.update(job.id, ("awaiting_choice",), **values))
            except StateError:
                continue  # somebody else was quicker
            finally:
                lock.release()
        return changed

    def note_death(self, worker: str, last_lines: Iterable[str]) -> None:
        """Keep what a dead worker wrote last with the job that it held."""
        lines = list(last_lines)
        with self.transaction() as db:
            rows = db.execute(
                "SELECT * FROM jobs WHERE worker = ? AND status = 'running'", (worker,)
            ).fetchall()
            for job in map(Job.of, rows):
                result = json.dumps({**job.result, "stderr": lines})
                db.execute("UPDATE jobs SET result = ? WHERE id = ?", (result, job.id))

    def delete(self, job: Job) -> None:
        """Forget a job that is over; its folder is removed by the caller."""
        with self.transaction() as db:
            self._change(db, job.id, FINAL, {})
            db.execute("DELETE FROM jobs WHERE id = ?", (job.id,))
            db.execute("INSERT OR IGNORE INTO deleted VALUES (?)", (job.id,))

    def adopt(self, folder: str, status: str, values: Mapping[str, Any]) -> None:
        """List a run folder that the command line made, or bring its row up to date.

        Args:
            folder: its name below the data folder.
            status: its state.
            values: other columns: request, created, finished, result.
        """
        job_id = f"run_{hashlib.sha256(folder.encode()).hexdigest()[:16]}"
        with self.transaction() as db:
            if db.execute("SELECT 1 FROM jobs WHERE id = ?", (job_id,)).fetchone() is None:
                db.execute(
                    "INSERT INTO jobs (id, kind, status, request, folder, created, change)"
                    " VALUES (?, 'generate', ?, '{}', ?, ?, 0)",
                    (job_id, status, folder, time.time()),
                )
                db.execute("DELETE FROM deleted WHERE id = ?", (job_id,))
            self._change(db, job_id, (*ACTIVE, *FINAL), {"status": status, **values})

    def adopted(self) -> list[Job]:
        """The listed runs of the command line."""
        rows = self.connection().execute("SELECT * FROM jobs WHERE folder != ''")
        return [Job.of(row) for row in rows]

    def forget(self, job_id: str) -> None:
        """Drop the row of a run of the command line whose folder is gone."""
        with self.transaction() as db:
            db.execute("DELETE FROM jobs WHERE id = ? AND folder != ''", (job_id,))

    def is_paused(self) -> bool:
        """Whether queued jobs are held back."""
        found = self.connection().execute("SELECT value FROM counters WHERE name = 'paused'")
        return bool(found.fetchone()[0])

    def pause(self, paused: bool) -> None:
        """Hold queued jobs back, or let them start."""
        with self.transaction() as db:
            db.execute("UPDATE counters SET value = ? WHERE name = 'paused'", (int(paused),))

    def note_seconds(self, group: str, part: str, seconds: float) -> None:
        """Remember how long a part of a job took; `group` names preset and device."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO durations VALUES (?, ?, ?, ?)", (group, part, seconds, time.time())
            )

    def typical_seconds(self, group: str, runs: int = 20) -> dict[str, float]:
        """The median of the last `runs` durations of each part, seconds."""
        rows = self.connection().execute(
            "SELECT part, seconds FROM durations WHERE grp = ? ORDER BY created DESC LIMIT 1000",
            (group,),
        )
        found: dict[str, list[float]] = {}
        for part, seconds in rows:
            found.setdefault(part, []).append(seconds)
        return {part: sorted(all_[:runs])[len(all_[:runs]) // 2] for part, all_ in found.items()}


def _ended() -> dict[str, Any]:
    return {"finished": time.time(), "want": "", "worker": ""}
