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
import hashlib
import http.client
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.helpers.service import TINY, RunningService
from tests.serve import soak_jobs, soak_page
from vp3d.client import FINAL

PROMPTS = ("a red mushroom with a white stem", "a blue mug", "a green cone on a yellow cube")
DRAFT = {"optim.checkpoint_every": 10, "export.formats": ["glb"]}  # a draft, often saved
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
        found = [client.job(job_id).data for job_id in wanted]
        for one in found:
            if (one["error"] or {}).get("code") == "worker_crashed":  # three kills in a row
                client.job(one["id"]).resume()
                given_up += 1
        left = sum(one["status"] not in FINAL for one in found)
        if not left and not any(one["status"] == "failed" for one in found):
            break
        to_come = kills - sum(killed.values())
        claimed = sum(one["attempts"] for one in found)
        if claimed != attempts:  # a worker has taken a job: the next moment counts from here
            attempts = claimed
            mean = 0.9 * left * calm_s / jobs / max(to_come, 1)
            next_kill = time.monotonic() + rng.uniform(SOONEST_S, max(2 * mean, LEAST_S))
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
    begun, over, killed = 0, threading.Event(), 0

    def submit(number: int) -> str:
        nonlocal begun
        begun += 1
        key = number % arguments.keys
        client = service.client(tries=60)
        return client.submit("a red cube", seed=key, key=f"key {key}").id

    def kill() -> None:
        nonlocal killed
        while killed < len(moments) and not over.wait(0.002):
            if begun > moments[killed]:
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
    """A3: one stream, broken again and again, against the log."""
    service = RunningService(root / "data", workers=1).start()
    settings = {**TINY, "optim.steps": 60}
    job = service.client().submit("a red cube", preset="draft", settings=settings)
    rng = random.Random(arguments.seed)
    heard, breaks, last = [], 0, 0
    while not heard or heard[-1].name != "end":
        client = service.client(timeout_s=20.0, tries=40)
        stream = client.events(f"/v1/jobs/{job.id}/events", last)
        for event in stream:
            heard.append(event)
            last = event.id
            if event.name == "end":
                break
            if breaks < arguments.breaks and rng.random() < 0.2:
                breaks += 1
                if breaks % 3 == 0:
                    service.kill()
                    service.start()
                break  # the connection is dropped
        stream.close()
    service.stop()
    lines = (service.data / "jobs" / job.id / "events.jsonl").read_text().splitlines()
    names = [(n, json.loads(line)["event"]) for n, line in enumerate(lines, 1)]
    got = [(event.id, event.name) for event in heard]
    return {"lines": len(lines), "heard": len(got), "breaks": breaks, "ok": got == names}


def fuzz(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """A5: requests that no client would send."""
    outside = root / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("treasure")
    service = RunningService(root / "data", "--max-queued", "1000000").start()
    client = service.client()
    known = client.submit("a red cube").id
    rng = random.Random(arguments.seed)
    before = {path for path in root.rglob("*") if service.data not in path.parents}
    statuses: dict[int, int] = {}
    leaked = 0
    for _ in range(arguments.requests):
        status, body = send(service.port, rng, known)
        statuses[status] = statuses.get(status, 0) + 1
        leaked += b"Traceback" in body or b"treasure" in body or status == 500
    after = {path for path in root.rglob("*") if service.data not in path.parents}
    alive = client.job(known).status == "queued"
    service.stop()
    clean = "Traceback" not in service.log()
    ok = not leaked and alive and clean and before == after and 500 not in statuses
    return {
        "requests": arguments.requests,
        "statuses": dict(sorted(statuses.items())),
        "no_file_outside": before == after,
        "no_traceback": clean,
        "ok": ok,
    }


WORDS = (
    *(
        "..",
        "../" * 6 + "etc/passwd",
        "%2e%2e%2f",
        "model.glb",
        "\0",
        "%00",
        "ü",
        "\u202e",
        "a" * 300,
    ),
    *("preview.png", "config.yaml", "../../outside/secret.txt", "-1", "0", "1e999", "NaN", "'; --"),
    *("%ff%fe", "%ed%a0%80", "run_", "job_", "*", "//", "\\..\\", "{}", "[]", "null", "true"),
)
VALUES = (
    *(None, True, 0, -1, 2**63, 2**70, 1e308, "", "a red cube", "\ud800", "\0", "x" * 5000, [], {}),
    *(
        ["glb"],
        [[]],
        {"a": 1},
        {"optim.steps": 10**9},
        {"prior.path": "/etc"},
        {"optim.steps": "x"},
    ),
    *(
        {"export.formats": ["../x"]},
        "../../outside/secret.txt",
        "/etc/passwd",
        0.5,
        "draft",
        "auto",
    ),
)
FIELDS = (
    *("prompt", "negative_prompt", "profile", "preset", "seed", "image", "choose", "formats"),
    *("settings", "priority", "prompts", "seeds", "faces", "candidate", "keep", "paused", "token"),
)
POSTS = (
    *("/v1/jobs", "/v1/batches", "/v1/uploads", "/v1/prompts/check", "/v1/session", "/v1/queue"),
    *("/v1/jobs/{}/cancel", "/v1/jobs/{}/choose", "/v1/jobs/{}/exports", "/v1/jobs/{}/resume"),
    *("/v1/jobs/{}/refine", "/v1/jobs/{}/priority"),
)
GETS = (
    *("/v1/jobs/{}", "/v1/jobs/{}/artifacts", "/v1/jobs/{}/artifacts/{}", "/static/{}", "/{}"),
    *("/v1/jobs?status={}&q={}&limit={}&cursor={}", "/v1/batches/{}", "/v1/vocabulary?profile={}"),
)


def send(port: int, rng: random.Random, known: str) -> tuple[int, bytes]:
    """One random request: its status, 0 for a connection that was closed, and its answer."""

    def word() -> str:
        return rng.choice((known, rng.choice(WORDS)))

    method = rng.choice(("GET", "GET", "POST", "POST", "POST", "DELETE", "PUT", "PATCH", "HEAD"))
    form = rng.choice(POSTS if method == "POST" else GETS)
    path = form.format(*(word() for _ in range(form.count("{}"))))
    if method == "DELETE" and path.endswith(known):
        method = "GET"
    if form.endswith("/cancel"):
        path = path.replace(known, "job_x")
    headers = {}
    for name in ("Range", "If-None-Match", "Idempotency-Key", "Last-Event-ID", "Content-Type"):
        if rng.random() < 0.3:
            text = rng.choice((word(), "bytes=0-", "bytes=-5", "bytes=9-1", "application/json"))
            headers[name] = "".join(c for c in text if 31 < ord(c) < 127)
    body = random_body(rng) if method in ("POST", "PUT", "PATCH") else None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        safe = "".join(c if 32 < ord(c) < 127 else "%00" if c == "\0" else "%C3%BC" for c in path)
        connection.putrequest(method, safe, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        reply = connection.getresponse()
        return reply.status, reply.read(4096)
    except (http.client.HTTPException, OSError):
        return 0, b""
    finally:
        connection.close()


def random_body(rng: random.Random) -> bytes:
    """A body that is JSON of the wrong kind, broken JSON, or bytes."""
    kind = rng.random()
    if kind < 0.65:
        names = rng.sample(FIELDS, rng.randint(0, 4))
        tree = {name: rng.choice(VALUES) for name in names}
        if rng.random() < 0.5:
            tree["prompt"] = rng.choice(("a red cube", rng.choice(VALUES)))
        return json.dumps(tree).encode("utf-8", "replace")
    if kind < 0.8:
        text = json.dumps({"prompt": "a red cube", "seed": 1}).encode()
        at = rng.randrange(len(text))
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    if kind < 0.9:
        png = b"\x89PNG\r\n\x1a\n" + rng.randbytes(rng.randint(0, 200))
        return png
    return rng.choice((b"", b"null", b"[" * 5000, b"{" * 300, rng.randbytes(500), b"1" * 100_000))


COMMANDS = {
    "kills": ("A1", kills),
    "submits": ("A2", submits),
    "streams": ("A3", streams),
    "fuzz": ("A5", fuzz),
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
    parser.add_argument("--requests", type=int, default=2000, help="fuzz")
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
