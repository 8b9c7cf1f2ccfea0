"""Figures of the service while jobs run: how quickly it stops and answers, and its estimates.

The commands A4, A6, A7, A8 and B6 of `python -m tests.serve.soak`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.helpers.service import ROOT, TINY, RunningService
from vp3d.client import Client, Job

LONG = {**TINY, "optim.steps": 5000, "optim.checkpoint_every": 20}
TOKEN = "a token of the tests"
ANSWER_MS, STOP_S = 100.0, 5.0  # A4: longest answer to a cancel, longest work after it
CORES = os.cpu_count() or 1  # A6: threads of a run, so that it leaves no core to the server
READ_MS, SLOWER = 20.0, 0.03  # A6: 95th percentile of a GET, share by which a run may be slower
IDLE_MB = 80.0  # A8
ETA_MEDIAN, ETA_P90 = 0.25, 0.50  # B6: error of the estimate as a share of what was left


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which `share` of the sorted values are (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def until(condition: Callable[[], Any], seconds: float = 1800.0, pause: float = 0.1) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(pause)
    raise AssertionError("it did not happen in time")


def optimises(job: Job) -> bool:
    """Whether a job has made a step of its optimisation."""
    return bool((job.refresh().data["stage"] or {}).get("step"))


def stops(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """A4: a running job is cancelled, and another is stopped and kept, several times."""
    answers, stopped, kept = [], [], 0
    with RunningService(root / "data", workers=1) as service:
        client = service.client()
        for number in range(2 * arguments.stops):
            keep = bool(number % 2)
            job = client.submit("a red cube", preset="draft", seed=number, settings=LONG)
            until(lambda job=job: optimises(job))
            began = time.monotonic()
            job.cancel(keep=keep)
            answers.append(1000 * (time.monotonic() - began))
            until(lambda job=job: job.refresh().status in ("cancelled", "succeeded"), pause=0.02)
            if keep:
                path = job.download("model.glb", root / f"{number}.glb")
                kept += path.read_bytes()[:4] == b"glTF"
            else:
                stopped.append(time.monotonic() - began)
    ok = max(answers) <= ANSWER_MS and max(stopped) <= STOP_S and kept == arguments.stops
    return {
        "stops": arguments.stops,
        "longest_answer_ms": round(max(answers), 1),
        "longest_stop_s": round(max(stopped), 2),
        "kept_as_glb": kept,
        "ok": ok,
    }


def step_seconds(run: Path) -> float:
    """Seconds of the optimisation of a run, from its first logged step to its last."""
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    times = [event["time"] for event in map(json.loads, lines) if event["kind"] == "step"]
    return float(times[-1] - times[0])


def read_often(client: Client, job: Job, every_s: float, over: threading.Event) -> list[float]:
    """Milliseconds of a GET of the job, asked again and again while it optimises."""
    found = []
    while not over.wait(every_s):
        began = time.perf_counter()
        data = client.call("GET", job.path)
        spent = 1000 * (time.perf_counter() - began)
        assert data["id"] == job.id
        if (data["stage"] or {}).get("name") == "coarse":
            found.append(spent)
    return found


def run_served(root: Path, settings: dict[str, Any], seed: int) -> tuple[float, list[float]]:
    """Seconds of an optimisation on a service with an open page, and milliseconds of its GETs."""
    times: list[float] = []
    with RunningService(root / f"served-{seed}", workers=1, threads=CORES) as service:
        client = service.client()
        job = client.submit("a red cube", preset="draft", seed=seed, settings=settings)
        over = threading.Event()
        reader = threading.Thread(
            target=lambda: times.extend(read_often(client, job, 0.25, over)), daemon=True
        )
        reader.start()
        for _ in job.events():  # as an open page does
            continue
        over.set()
        reader.join()
        run = next((service.data / "jobs" / job.id).glob("*/config.yaml")).parent
        return step_seconds(run), times


def run_alone(root: Path, settings: dict[str, Any], seed: int) -> float:
    """Seconds of the same optimisation from the command line."""
    folder = root / f"alone-{seed}"
    values = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    command = [sys.executable, "launch.py", "a red cube", "--preset", "draft"]
    command += ["--seed", str(seed), f"output_dir={folder}", *values]
    environment = {**os.environ, "OMP_NUM_THREADS": str(CORES)}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    return step_seconds(next(folder.glob("*/config.yaml")).parent)


def answers(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """A6: how quickly a job is shown while it optimises on all cores, and what that costs it.

    Pairs of runs, one on a service with an open page, one without a service; `--pairs 0` makes
    one served run and compares nothing.
    """
    settings = {"optim.steps": arguments.steps, "export.formats": ["glb"]}
    times: list[float] = []
    shares = []
    for seed in range(max(arguments.pairs, 1)):
        served, read = run_served(root, settings, seed)
        times += read
        if arguments.pairs:
            shares.append(served / run_alone(root, settings, seed) - 1.0)
    slower = statistics.median(shares) if shares else None
    found: dict[str, Any] = {"pairs": arguments.pairs, "steps": arguments.steps, "gets": len(times)}
    found["get_p50_ms"] = round(percentile(times, 0.5), 2)
    found["get_p95_ms"] = round(percentile(times, 0.95), 2)
    found["slower"] = None if slower is None else round(slower, 4)
    found["ok"] = found["get_p95_ms"] <= READ_MS and (slower is None or slower <= SLOWER)
    return found


def guards(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """A7: requests without a token, from a foreign site, and to a foreign name."""
    right = {"Authorization": f"Bearer {TOKEN}"}
    cases: list[tuple[str, str, dict[str, str], int]] = []
    for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("DELETE", "/v1/jobs/x")):
        cases += [
            (method, path, {}, 401),
            (method, path, {"Authorization": "Bearer wrong"}, 401),
            (method, path, {"Cookie": "vp3d_session=wrong"}, 401),
            (method, path, {**right, "Host": "evil.example"}, 403),
            (method, path, {"Host": "evil.example"}, 403),
        ]
        if method != "GET":
            cases += [
                (method, path, {**right, "Origin": "http://evil.example"}, 403),
                (method, path, {**right, "Origin": "null"}, 403),
            ]
    cases += [("GET", "/v1/jobs", right, 200), ("GET", "/healthz", {}, 200)]
    wrong = []
    with RunningService(root / "data", token=TOKEN) as service:
        for method, path, headers, status in cases:
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
            connection.request(method, path, headers=headers)
            got = connection.getresponse().status
            connection.close()
            if got != status:
                wrong.append(f"{method} {path} {headers}: {got}, not {status}")
    return {"requests": len(cases), "wrong": wrong, "ok": not wrong}


def idle(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """A8: memory of a server that waits."""
    with RunningService(root / "data") as service:
        assert service.process is not None
        list(service.client().jobs())
        status = Path(f"/proc/{service.process.pid}/status").read_text(encoding="utf-8")
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match is not None
    used = int(match.group(1)) / 1024
    return {"idle_mb": round(used, 1), "ok": used <= IDLE_MB}


def eta_error(log: Path, finished: str) -> float | None:
    """The error of the estimate after a quarter of a job's time, as a share of what was left.

    Args:
        log: the job's `events.jsonl`.
        finished: when the job ended, as the service says it.
    """
    end = datetime.fromisoformat(finished).timestamp()
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    paced = [line for line in lines if line["data"].get("eta_s") is not None]
    paced = [line for line in paced if line["event"] in ("stage", "step")]
    if not paced:
        return None
    quarter = paced[0]["time"] + 0.25 * (end - paced[0]["time"])
    line = [one for one in paced if one["time"] <= quarter][-1]
    left = end - line["time"]
    return abs(float(line["data"]["eta_s"]) - left) / left


def eta(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """B6: the estimate after a quarter of each run, on a fresh store, against what it took."""
    settings = {} if arguments.full else TINY
    errors = []
    with RunningService(root / "data", workers=1) as service:
        client = service.client()
        for seed in range(arguments.runs):
            job = client.submit("a red cube", preset="draft", seed=seed, settings=settings).wait()
            log = service.data / "jobs" / job.id / "events.jsonl"
            errors.append(eta_error(log, job.data["finished_at"]))
    known = [error for error in errors if error is not None]
    middle, high = statistics.median(known), percentile(known, 0.9)
    return {
        "runs": len(known),
        "median_error": round(middle, 3),
        "p90_error": round(high, 3),
        "ok": len(known) == arguments.runs and middle <= ETA_MEDIAN and high <= ETA_P90,
    }


COMMANDS = {
    "stops": ("A4", stops),
    "answers": ("A6", answers),
    "guards": ("A7", guards),
    "idle": ("A8", idle),
    "eta": ("B6", eta),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of these commands."""
    parser.add_argument("--stops", type=int, default=5, help="stops: of each kind")
    parser.add_argument("--pairs", type=int, default=7, help="answers: pairs of runs")
    parser.add_argument("--steps", type=int, default=200, help="answers: steps of a run")
    parser.add_argument("--runs", type=int, default=20, help="eta: how many runs")
