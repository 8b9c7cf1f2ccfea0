"""A real service as a child process, with or without workers. For tests only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from vp3d.client import Client

ROOT = Path(__file__).resolve().parents[2]
START_S = 600.0
TINY = {  # settings of a job that is short but has every stage
    "visual_prompt.candidates": 2,
    "visual_prompt.steps": 4,
    "visual_prompt.steadiness": 0.0,
    "optim.steps": 12,
    "optim.views": 1,
    "optim.checkpoint_every": 3,
    "export.grid": 24,
    "export.faces": 300,
    "export.texture_size": 32,
    "export.turntable": "gif",
    "export.turntable_frames": 2,
    "export.turntable_size": 32,
}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class RunningService:
    """`launch.py serve` on a data folder; `kill` and `start` as often as a test likes."""

    def __init__(
        self, data: Path, *options: str, workers: int = 0, token: str = "", threads: int = 1
    ) -> None:
        self.data, self.options, self.workers, self.token = data, options, workers, token
        self.threads = threads
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **settings) -> Client:
        return Client(self.url, self.token, **settings)

    def start(self) -> RunningService:
        access = [] if self.token else ["--no-token"]
        command = [sys.executable, str(ROOT / "launch.py"), "serve", "--data", str(self.data)]
        command += ["--port", str(self.port), "--workers", str(self.workers), *access]
        self.data.mkdir(parents=True, exist_ok=True)
        with (self.data / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.options],
                stderr=log,
                stdout=log,
                cwd=ROOT,
                env={**os.environ, "VP3D_TOKEN": self.token, "OMP_NUM_THREADS": str(self.threads)},
            )
        until = time.monotonic() + START_S
        while time.monotonic() < until and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.2).close()
                return self
            except OSError:
                time.sleep(0.05)
        raise AssertionError((self.data / "service.log").read_text()[-2000:])

    def worker_pids(self) -> list[int]:
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task")
        found = [
            int(pid) for task in path.iterdir() for pid in (task / "children").read_text().split()
        ]
        return [pid for pid in found if b"vp3d.jobs.worker" in command_line(pid)]

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def log(self) -> str:
        return (self.data / "service.log").read_text()

    def __enter__(self) -> RunningService:
        return self.start()

    def __exit__(self, *_) -> None:
        self.stop()


def command_line(pid: int) -> bytes:
    """The command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
