"""Kill the workers of a batch at random: `python -m tests.batch.soak [--engine ray] [--kills 20]`.

It makes the same tiny assets three times: one after the other, by the engine with kills, and again
by the same command, which must make nothing. Exits with 1 unless every mesh has the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.helpers.tiny_batch import tiny_settings, words_of

ROOT = Path(__file__).resolve().parents[2]


def meshes(work: Path) -> dict[str, bytes]:
    """Key of each finished run -> the bytes of its GLB."""
    records = {path.stem: json.loads(path.read_text()) for path in work.glob("results/*.json")}
    return {
        key: (work / record["source"] / "model.glb").read_bytes()
        for key, record in records.items()
        if not record["failure"]
    }


def workers_of(driver: psutil.Process) -> list[psutil.Process]:
    """The processes below a driver that make assets."""
    found = []
    for process in driver.children(recursive=True):
        try:
            words = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "spawn_main" in words or words.startswith("ray::"):
            found.append(process)
    return found


def kill_some(driver: subprocess.Popen[bytes], count: int, pause: float) -> int:
    """Kill a random worker, up to `count` times, while the driver lives; how many were killed."""
    choose, killed = random.Random("soak"), 0
    while driver.poll() is None and killed < count:
        time.sleep(pause * (0.5 + choose.random()))
        workers = workers_of(psutil.Process(driver.pid)) if driver.poll() is None else []
        if workers:
            os.kill(choose.choice(workers).pid, signal.SIGKILL)
            killed += 1
    driver.wait()
    return killed


def main() -> int:
    """Run the three batches and compare them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", default="local", choices=("local", "ray"))
    parser.add_argument("--assets", type=int, default=24)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pause", type=float, default=4.0, help="mean seconds between kills")
    parser.add_argument("--steps", type=int, default=12, help="of each run")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    prompts = root / "prompts.txt"
    prompts.write_text("".join(f"a red sphere seed={n}\n" for n in range(options.assets)))
    plain = tiny_settings(root, "plain", options.steps)
    killed = tiny_settings(root, "killed", options.steps)
    launch = [sys.executable, str(ROOT / "launch.py")]
    start = time.monotonic()
    subprocess.run([*launch, *words_of(plain, prompts)], check=True, cwd=root)
    alone = time.monotonic() - start
    command = [*launch, *words_of(killed, prompts), "--engine", options.engine, "--workers", "2"]
    start = time.monotonic()
    kills = kill_some(subprocess.Popen(command, cwd=root), options.kills, options.pause)
    together = time.monotonic() - start
    before = {path: path.stat().st_mtime_ns for path in killed.folder.glob("results/*.json")}
    subprocess.run(command, check=True, cwd=root)
    after = {path: path.stat().st_mtime_ns for path in killed.folder.glob("results/*.json")}
    wanted, found = meshes(plain.folder), meshes(killed.folder)
    same = sum(found.get(key) == mesh for key, mesh in wanted.items())
    sys.stdout.write(
        f"{options.engine}: {kills} kills, {len(found)} of {options.assets} assets, {same} with "
        f"equal bytes, {sum(before[path] == after[path] for path in before)} of {len(before)} left "
        f"alone by the second command; {alone:.0f} s one after the other, {together:.0f} s\n"
    )
    return 0 if len(wanted) == len(found) == same == options.assets and before == after else 1


if __name__ == "__main__":
    sys.exit(main())
