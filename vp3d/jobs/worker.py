"""A worker process: claims jobs one after the other and keeps the models in memory.

    python -m vp3d.jobs.worker --data DIR --name NAME

It lives as long as the pipe on its standard input is open: when the process that started it ends,
however it ends, the worker finishes the step it is at, writes a checkpoint and leaves. SIGTERM asks
for the same. "ready" on standard output says that torch and the embedded models are loaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vp3d.errors import MissingWeightsError, OutOfMemoryError, ResourceError, VP3DError
from vp3d.jobs.artifacts import run_folder
from vp3d.jobs.request import config_of, export_layer
from vp3d.jobs.store import Claim, StateError, Store
from vp3d.jobs.work import AwaitingChoice, Cancelled, Leaving, Listener, sync
from vp3d.report.front_view import last_front_view
from vp3d.runs.events import figures_of

POLL_S = 0.25  # between two looks for a job
LEAVE_S = 10.0  # a worker that was asked to leave ends after this, whatever it does
JOBS_A_PROCESS = 20  # then a fresh process takes over
MEMORY_GROWTH_BYTES = 6 << 30  # above what was used after the first job; then likewise
EXIT_LEFT_LATE = 76
FIXED = {".safetensors", ".png", ".glb", ".obj", ".ply", ".stl", ".mtl", ".usdz", ".3mf"}  # linked
UNEXPECTED = {  # the error of a job that met a bug
    "code": "internal",
    "title": "Internal error",
    "status": 500,
    "detail": "an unexpected error; the log of the worker has the details",
}


class Worker:
    """The loop of one process.

    Args:
        store: the job store.
        name: the worker's name in it.
        leave: set when the process has to leave.
    """

    def __init__(self, store: Store, name: str, leave: threading.Event) -> None:
        self.store, self.name, self.leave = store, name, leave
        self.models: Any = None
        self.done = 0
        self.memory_at_first = 0

    def warm_up(self) -> None:
        """Load torch and the embedded models, so that the first job starts at once."""
        from vp3d import build
        from vp3d.config.schema import Config

        try:
            self.models = build.load_models(Config())
        except VP3DError:
            self.models = None  # a job says what is missing

    def run(self) -> None:
        """Work until the process is asked to leave, or has done enough."""
        while not self.leave.is_set() and not self.is_worn():
            claim = self.store.claim(self.name)
            if claim is None:
                self.leave.wait(POLL_S)
                continue
            self.work_on(claim)
            self.done += 1

    def is_worn(self) -> bool:
        """Whether a fresh process should take over."""
        import psutil

        used = psutil.Process().memory_info().rss
        if self.done == 1 and not self.memory_at_first:
            self.memory_at_first = used
        grown = self.done > 1 and used - self.memory_at_first > MEMORY_GROWTH_BYTES
        return self.done >= JOBS_A_PROCESS or grown

    def work_on(self, claim: Claim) -> None:
        """Do one job and store how it ended; a job that is left stays "running"."""
        import torch

        sync(self.store, claim.job)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        listener = Listener(self.store, claim, self.leave, device)
        listener.begin()
        status: str = "running"
        values: dict[str, Any] = {}
        try:
            status, values = self.make(claim, listener)
            listener.estimate.finish()
        except AwaitingChoice:
            status, values = "awaiting_choice", {"finished": time.time()}
        except Leaving:
            status, values = "running", {}
        except Cancelled:
            status, values = "cancelled", {}
        except VP3DError as error:
            status, values = "failed", {"error": problem_of(error)}
        except Exception:
            logging.exception("the job %s failed", claim.job.id)
            status, values = "failed", {"error": UNEXPECTED}
        finally:
            listener.end()
            self.models = self.models if status != "failed" else None
            try:
                job = self.store.release(claim, status, **values)
            except StateError:  # deleted by hand
                claim.lock.release()
            else:
                sync(self.store, job)

    def make(self, claim: Claim, listener: Listener) -> tuple[str, dict[str, Any]]:
        """The job's asset: the state it ends in, and what the store keeps of it."""
        kinds: dict[str, Callable[[Claim, Listener], dict[str, Any]]] = {
            "generate": self.generate,
            "export": self.export,
        }
        listener.check()
        return "succeeded", {"result": kinds[claim.job.kind](claim, listener)}

    def generate(self, claim: Claim, listener: Listener) -> dict[str, Any]:
        """Make, continue or find the job's one run."""
        from vp3d.checks import read_prompts
        from vp3d.jobs.make_once import make
        from vp3d.runs.folder import RunFolder
        from vp3d.visual_prompt.choose import choose_candidate

        job, folder = claim.job, self.store.folder(claim.job.id)
        config = config_of(job.request, self.store.data)
        config, notes = read_prompts(config)
        for note in notes:
            listener.warn(note)
        sweep(folder)
        drawn = drawn_run(folder)
        if drawn is not None:
            listener.note_candidates(*drawn.candidates())
            if listener.asks:
                raise AwaitingChoice
            if job.choice is not None and job.choice >= 0 and not drawn.has_steps():
                choose_candidate(drawn.run, config.visual_prompt, job.choice)
        watch = listener.watch()
        made = make(config, folder, watch, self.models_for(config, watch), may_stop=True)
        run = RunFolder.open(made.folder)
        done = run.events("done")
        figures = listener.figures or figures_of(done[-1] if done else {})
        return _result(run, figures, stopped=not made.finished)

    def models_for(self, config: Any, watch: Any) -> Any:
        """The models of the last job if this one needs the same, else new ones."""
        from vp3d import build

        kept = self.models is not None and self.models.settings == build.model_settings(config)
        if not kept:
            self.models = None  # both would not fit
            self.models = build.load_models(config, watch)
        return self.models

    def export(self, claim: Claim, listener: Listener) -> dict[str, Any]:
        """Export a copy of the parent's run with other settings; the parent's files stay."""
        from vp3d import pipeline
        from vp3d.config.reader import merge
        from vp3d.errors import UserError
        from vp3d.runs.folder import RunFolder

        parent = self.store.find(claim.job.parent)
        source = None if parent is None else run_folder(self.store.data, parent.id, parent.folder)
        if source is None:
            raise UserError(f"the run of {claim.job.parent} is gone, so it cannot be exported")
        folder = self.store.folder(claim.job.id)
        sweep(folder)
        run = copy_run(source, folder)
        config = RunFolder.open(run).config()
        merge(config, export_layer(claim.job.request))
        if "formats" in export_layer(claim.job.request).get("export", {}):
            for path in run.glob("model.*"):  # only the formats that were asked for
                path.unlink()
        asset = pipeline.export_run(run, config, listener.watch())
        return _result(RunFolder.open(run), asset.figures, stopped=False)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A run whose candidates are there."""

    run: Any

    def candidates(self) -> tuple[list[float | None], int]:
        """Their scores, and the one that was chosen."""
        from vp3d.system.files import read_json_object
        from vp3d.visual_prompt.make import SCORES_FILE

        scores = read_json_object(self.run.visual_prompt / SCORES_FILE)
        return list(scores["scores"]), int(scores["chosen"])

    def has_steps(self) -> bool:
        """Whether the optimisation has left a checkpoint."""
        return any((self.run.path / "checkpoints").glob("*/*.safetensors"))


def _result(run: Any, figures: Mapping[str, float], stopped: bool) -> dict[str, Any]:
    """What the store keeps of a run that is done."""
    graded = last_front_view(run.events())
    grade = None if graded is None else graded["grade"]
    return {
        "figures": dict(figures),
        "front_grade": grade,
        "stopped": stopped,
        "run": run.path.name,
    }


def drawn_run(folder: Path) -> Drawn | None:
    """The run in a job's folder that has its visual prompt."""
    from vp3d.checks import is_drawn
    from vp3d.jobs.make_once import found_runs

    runs = [run for run in found_runs(folder) if is_drawn(run)]
    return Drawn(runs[-1]) if runs else None


def sweep(folder: Path) -> None:
    """Remove what a killed worker left before it was a run; only the holder of the job may."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not (path / "config.yaml").is_file():
            shutil.rmtree(path, ignore_errors=True)


def copy_run(source: Path, folder: Path) -> Path:
    """A copy of a run in a job's folder; checkpoints and pictures are linked, not copied.

    Files are replaced but never changed in place, so a link is as good as a copy. `config.yaml`
    comes last: it makes the folder a run.
    """
    target = folder / source.name
    if (target / "config.yaml").is_file():
        return target

    def link(path: str, copy: str) -> None:
        is_fixed = Path(path).suffix in FIXED
        try:
            (os.link if is_fixed else shutil.copy2)(path, copy)
        except OSError:
            shutil.copy2(path, copy)

    ignored = shutil.ignore_patterns(".*", "config.yaml", "preview.glb")
    shutil.copytree(source, target, ignore=ignored, copy_function=link)
    shutil.copy2(source / "config.yaml", target / ".config.yaml.copy")
    (target / ".config.yaml.copy").replace(target / "config.yaml")
    return target


def problem_of(error: VP3DError) -> dict[str, Any]:
    """One of our own errors as the job's error."""
    status = 422
    if isinstance(error, MissingWeightsError | OutOfMemoryError):
        status = 503
    elif isinstance(error, ResourceError):
        status = 507
    title = error.code.replace("_", " ").capitalize()
    return {"code": error.code, "title": title, "status": status, "detail": str(error)}


def follow_parent(leave: threading.Event) -> None:
    """Ask the process to leave when standard input ends, and see to it that it does."""
    while True:
        try:
            data = os.read(0, 4096)
        except OSError:
            data = b""
        if not data:
            break
    leave.set()
    force_leave()


def force_leave() -> None:
    """End the process after `LEAVE_S`; what it has not finished is made again."""
    timer = threading.Timer(LEAVE_S, os._exit, (EXIT_LEFT_LATE,))
    timer.daemon = True
    timer.start()


def main() -> int:
    """Parse the command line and work."""
    parser = argparse.ArgumentParser(description="Work on the jobs of a service.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--nice", type=int, default=0)
    arguments = parser.parse_args()
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    leave = threading.Event()

    def asked(number: int, frame: object) -> None:
        leave.set()
        force_leave()

    signal.signal(signal.SIGTERM, asked)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent acts
    threading.Thread(target=follow_parent, args=(leave,), daemon=True).start()
    if arguments.nice:
        os.nice(arguments.nice)
    worker = Worker(Store(arguments.data), arguments.name, leave)
    worker.warm_up()
    report.write("ready\n")
    report.flush()
    worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
