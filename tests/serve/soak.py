"""One command for each figure that the service and its page are accepted by.

    python -m tests.serve.soak kills --full   A1: 50 kills under 20 jobs: equal bytes, nothing twice
    python -m tests.serve.soak submits        A2: 1,000 submits with 200 keys under kills: 200 jobs
    python -m tests.serve.soak streams        A3: every event once, in order, through 10 breaks
    python -m tests.serve.soak stops          A4: a cancel answers in 100 ms and holds in 5 s; keep
    python -m tests.serve.soak fuzz           A5: 2,000 malformed requests: no 500, no file outside
    python -m tests.serve.soak answers        A6: a GET at work in 20 ms, the work slowed by 3 %
    python -m tests.serve.soak guards         A7: 401 and 403 for what is foreign
    python -m tests.serve.soak idle           A8: memory of a server that waits
    python -m tests.serve.soak flows          B1 to B3: the page in Chromium, axe-core
    python -m tests.serve.soak first          B4: bytes and seconds of the first view
    python -m tests.serve.soak previews       B5: from event to picture; what live meshes cost
    python -m tests.serve.soak eta --full     B6: the estimate of 20 runs after a quarter
    python -m tests.serve.soak pictures       B7: the seven screenshots of the documentation

Each prints the row, PASS or FAIL, and its figures as JSON, and exits with 1 for FAIL. `make soak`
runs all; smaller numbers than the defaults are for a quick look.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.helpers.service import TINY, RunningService
from tests.serve import soak_fuzz, soak_jobs, soak_page
from vp3d.client import FINAL, LOST, Event, read_events

PROMPTS = ("a red mushroom with a white stem", "a blue mug", "a green cone on a yellow cube")
DRAFT = {"optim.checkpoint_every": 10, "export.formats": ["glb"]}  # a draft, often saved
CRASHED = "worker_crashed"  # the error of a job that was given up
SERVER_KILLS = 20  # of a server that takes 1,000 submits
SOONEST_S, LEAST_S = 2.0, 6.0  # a kill comes after so much work, and is awaited at least so long


def make_all(
    data: Path, jobs: int, full: bool, kills: int = 0, calm_s: float = 0.0, seed: int = 0
) -> dict[str, Any]:
    """Submit jobs, kill processes while they run, and wait for all of them.

    Args:
        data: the data folder.
        jobs: how many.
        full: drafts, not tiny jobs.
        kills: how often the server or its worker is killed, spread over the jobs.
        calm_s: seconds that the jobs take without kills.
        seed: of the moments and victims.

    Returns:
        States, hashes and counts.
    """
    service, rng = RunningService(data, workers=1).start(), random.Random(seed)
    settings: dict[str, Any] = DRAFT if full else TINY
    client, began = service.client(tries=40), time.monotonic()
    wanted = [
        client.submit(
            PROMPTS[n % len(PROMPTS)], preset="draft", seed=n // 3, key=f"k{n}", settings=settings
        ).id
        for n in range(jobs)
    ]
    killed, given_up, next_kill, attempts = {"server": 0, "worker": 0}, 0, 0.0, -1
    while True:
        known = {job.id: job.data for job in client.jobs()}
        found = [known[job_id] for job_id in wanted]
        crashed = [one["id"] for one in found if (one["error"] or {}).get("code") == CRASHED]
        for job_id in crashed:  # three kills in a row
            client.job(job_id).resume()
        given_up += len(crashed)
        left = sum(one["status"] not in FINAL for one in found) + len(crashed)
        if not left:
            break
        to_come = kills - sum(killed.values())
        claimed = sum(one["attempts"] for one in found)
        if claimed != attempts:  # a worker has taken a job: the next moment counts from here
            attempts = claimed
            work_s = calm_s / jobs  # of one job; the last kill comes before the last job
            longest = min(2 * 0.8 * left * work_s / max(to_come, 1), (left - 1) * work_s)
            next_kill = time.monotonic() + rng.uniform(SOONEST_S, max(longest, LEAST_S))
        at_work = any(one["status"] == "running" for one in found)
        if to_come > 0 and at_work and time.monotonic() > next_kill:
            kill_one(service, rng, killed)
            next_kill = time.monotonic() + 60.0  # until a worker is back
        time.sleep(0.2)
    took = time.monotonic() - began
    service.stop()
    return {
        "states": [job["status"] for job in found],
        "errors": [job["error"] for job in found if job["error"]],
        "attempts": sum(job["attempts"] for job in found),
        "hashes": [hash_of(data, job_id) for job_id in wanted],
        "runs": [len(list((data / "jobs" / job_id).glob("*/config.yaml"))) for job_id in wanted],
        "repeated": sum(steps_below_checkpoint(data / "jobs" / job_id) for job_id in wanted),
        "killed": killed,
        "given_up": given_up,
        "traceback": "Traceback" in service.log(),
        "took": took,
    }


def kill_one(service: RunningService, rng: random.Random, killed: dict[str, int]) -> None:
    """SIGKILL for the server, which is started again, or for its worker."""
    pids = service.worker_pids()
    if rng.random() < 0.4 or not pids:
        service.kill()
        killed["server"] += 1
        time.sleep(rng.uniform(0.0, 0.5))
        service.start()
    else:
        os.kill(rng.choice(pids), signal.SIGKILL)
        killed["worker"] += 1


def hash_of(data: Path, job_id: str) -> str:
    found = list((data / "jobs" / job_id).glob("*/model.glb"))
    return hashlib.sha256(found[0].read_bytes()).hexdigest() if len(found) == 1 else "none"


def steps_below_checkpoint(folder: Path) -> int:
    """How many logged steps are not beyond the last checkpoint before them."""
    count = 0
    for path in folder.glob("*/events.jsonl"):
        kept = 0
        for line in path.read_text(errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event["kind"] == "checkpoint":
                kept = event["step"]
            elif event["kind"] == "step" and event["step"] < kept:
                count += 1
    return count


def kills(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """A1. `given_up` counts jobs that three kills hit before one more step: they are resumed."""
    calm = make_all(root / "calm", arguments.jobs, arguments.full)
    wild = make_all(
        *(root / "wild", arguments.jobs, arguments.full),
        *(arguments.kills, calm["took"], arguments.seed),
    )
    equal = sum(a == b != "none" for a, b in zip(calm["hashes"], wild["hashes"], strict=True))
    succeeded, killed = wild["states"].count("succeeded"), sum(wild["killed"].values())
    one_run_each = wild["runs"] == [1] * arguments.jobs
    return {
        "jobs": arguments.jobs,
        "succeeded": succeeded,
        "equal_glb": equal,
        "one_run_each": one_run_each,
        "steps_done_twice": wild["repeated"],
        "attempts": wild["attempts"],
        "kills": killed,
        **wild["killed"],
        "given_up": wild["given_up"],
        "errors": wild["errors"],
        "traceback": wild["traceback"],
        "calm_s": round(calm["took"]),
        "ok": equal == succeeded == arguments.jobs
        and killed == arguments.kills
        and one_run_each
        and not wild["traceback"]
        and wild["repeated"] == 0,
    }


def submits(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """A2: many submits with few keys by 5 clients; the server is killed at random numbers."""
    service = RunningService(root / "data", "--max-queued", "100000").start()
    rng = random.Random(arguments.seed)
    moments = sorted(rng.sample(range(arguments.calls), min(SERVER_KILLS, arguments.calls // 4)))
    started, over, killed = 0, threading.Event(), 0

    def submit(number: int) -> str:
        nonlocal started
        started += 1
        key = number % arguments.keys
        client = service.client(tries=60)
        return client.submit("a red cube", seed=key, key=f"key {key}").id

    def kill() -> None:
        nonlocal killed
        while killed < len(moments) and not over.wait(0.002):
            if started > moments[killed]:
                service.kill()
                service.start()
                killed += 1

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    numbers = list(range(arguments.calls))
    rng.shuffle(numbers)
    try:
        with concurrent.futures.ThreadPoolExecutor(5) as clients:
            answers = list(clients.map(submit, numbers))
    finally:
        over.set()
    killer.join()
    stored = sum(1 for _ in service.client().jobs())
    service.stop()
    ids, traceback = set(answers), "Traceback" in service.log()
    by_key = {(number % arguments.keys, one) for number, one in zip(numbers, answers, strict=True)}
    ok = len(ids) == len(by_key) == stored == arguments.keys and killed > 0 and not traceback
    return {
        "calls": arguments.calls,
        "jobs": stored,
        "ids": len(ids),
        "kills": killed,
        "traceback": traceback,
        "ok": ok,
    }


def streams(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """A3: one stream, broken again and again, against the log.

    Read without `Client.events`, which hides what the service repeats.
    """
    service = RunningService(root / "data", workers=1).start()
    settings = {**TINY, "optim.steps": 60}
    job = service.client().submit("a red cube", preset="draft", settings=settings)
    rng = random.Random(arguments.seed)
    heard: list[Event] = []
    breaks = opened = 0
    while (not heard or heard[-1].name != "end") and opened <= 2 * arguments.breaks:
        opened += 1
        wanted = rng.randint(1, 3) if breaks < arguments.breaks else None
        found = listen(service, job.id, heard[-1].id if heard else 0, wanted)
        heard += found
        if wanted is not None and found and found[-1].name != "end":
            breaks += 1  # the connection was dropped
            if breaks % 3 == 0:
                service.kill()
                service.start()
    service.stop()
    lines = (service.data / "jobs" / job.id / "events.jsonl").read_text().splitlines()
    names = [(n, json.loads(line)["event"]) for n, line in enumerate(lines, 1)]
    got = [(event.id, event.name) for event in heard]
    return {
        "lines": len(lines),
        "heard": len(got),
        "breaks": breaks,
        "ok": got == names and breaks == arguments.breaks,
    }


def listen(service: RunningService, job_id: str, after: int, count: int | None) -> list[Event]:
    """The first `count` events of a new stream, or all; fewer if the service breaks it."""
    request = urllib.request.Request(
        f"{service.url}/v1/jobs/{job_id}/events", headers={"Last-Event-ID": str(after)}
    )
    found: list[Event] = []
    with contextlib.suppress(*LOST), urllib.request.urlopen(request, timeout=60.0) as reply:
        for event in itertools.islice(read_events(reply), count):
            found.append(event)
    return found


COMMANDS = {
    "kills": ("A1", kills),
    "submits": ("A2", submits),
    "streams": ("A3", streams),
    **soak_fuzz.COMMANDS,
    **soak_jobs.COMMANDS,
    **soak_page.COMMANDS,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=20, help="kills")
    parser.add_argument("--kills", type=int, default=50, help="kills")
    parser.add_argument("--full", action="store_true", help="drafts in place of tiny jobs")
    parser.add_argument("--calls", type=int, default=1000, help="submits")
    parser.add_argument("--keys", type=int, default=200, help="submits")
    parser.add_argument("--breaks", type=int, default=10, help="streams")
    soak_fuzz.add_options(parser)
    soak_jobs.add_options(parser)
    soak_page.add_options(parser)
    arguments = parser.parse_args(argv)
    row, command = COMMANDS[arguments.what]
    with tempfile.TemporaryDirectory(prefix="vp3d-soak-") as folder:
        began = time.monotonic()
        found = command(arguments, Path(folder))
        found["seconds"] = round(time.monotonic() - began, 1)
    passed = bool(found.pop("ok"))
    verdict = "PASS" if passed else "FAIL"
    sys.stdout.write(f"{row} {arguments.what} {verdict} {json.dumps(found)}\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
