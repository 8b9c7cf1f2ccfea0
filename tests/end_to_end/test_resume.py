"""Kill a run at any moment: resumed, it ends with the same checkpoint and the same GLB, bit for
bit, on a CPU.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
import torch

from tests.helpers import separate_run
from tests.helpers.listening import journal_of
from vp3d import pipeline
from vp3d.config.schema import Config
from vp3d.errors import UserError
from vp3d.runs.folder import RunFolder, save_config
from vp3d.train import loop
from vp3d.train.checkpoint import list_checkpoints, load
from vp3d.types import Asset


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    with separate_run.process_context() as context:
        yield context


@pytest.fixture
def straight(finished_run: Asset) -> Path:
    """The folder of a run that nothing interrupted.

    It had one thread, so those compared with it must, whatever ran before.
    """
    torch.set_num_threads(1)
    return finished_run.run_dir


def quick_config(straight: Path, place: Path) -> Config:
    """The same run, exported as a GLB only, into a folder of its own."""
    config = RunFolder.open(straight).config()
    config.output_dir = str(place)
    config.export.formats = ["glb"]
    return config


def start(
    processes: ForkServerContext, straight: Path, root: Path, steps: int = 12
) -> ForkServerProcess:
    """The same run in a process of its own, in `root / "runs"`."""
    config = quick_config(straight, root / "runs")
    config.optim.steps = steps
    save_config(config, root / "run.yaml")
    return separate_run.start(processes, root / "run.yaml", root / "stderr")


def wait_for(pattern: str, folder: Path, process: ForkServerProcess) -> int:
    """Wait until a file matches, or the process has ended: the process's number."""
    while not any(folder.glob(pattern)) and process.exitcode is None:
        time.sleep(0.005)
    assert process.pid is not None
    return process.pid


def assert_equal_runs(a: Path, b: Path) -> None:
    one, two = (load(list_checkpoints(run / "checkpoints" / "coarse")[-1]) for run in (a, b))
    assert one.meta == two.meta and one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    assert (a / "model.glb").read_bytes() == (b / "model.glb").read_bytes()


@pytest.mark.parametrize(
    "kill_after", ["*/visual_prompt/scores.json", "*/checkpoints/coarse/0*.safetensors"]
)
def test_kill_and_resume_is_bit_for_bit(
    tmp_path: Path, processes: ForkServerContext, straight: Path, kill_after: str
) -> None:
    process = start(processes, straight, tmp_path)
    os.kill(wait_for(kill_after, tmp_path / "runs", process), signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert not (run_dir / "model.glb").exists()
    config = RunFolder.open(run_dir).config()
    asset = pipeline.generate(config, resume_from=run_dir)
    assert asset.run_dir == run_dir
    assert_equal_runs(straight, run_dir)


def test_resume_of_a_finished_run_exports_the_same_again(straight: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(straight, tmp_path / "run")
    (folder / "model.glb").unlink()
    (
        folder / "checkpoints" / "coarse" / ".00000012.0123abcd.safetensors"
    ).touch()  # what a killed process leaves behind
    pipeline.generate(quick_config(folder, tmp_path), resume_from=folder)
    assert (folder / "model.glb").read_bytes() == (straight / "model.glb").read_bytes()
    assert RunFolder.open(folder).events("resume")[-1]["step"] == 12
    assert not list((folder / "checkpoints" / "coarse").glob(".*"))


def test_ctrl_c_stops_and_exports_what_there_is(
    processes: ForkServerContext, straight: Path, tmp_path: Path
) -> None:
    process = start(processes, straight, tmp_path, steps=2000)
    first = "*/checkpoints/coarse/0*.safetensors"
    os.kill(wait_for(first, tmp_path / "runs", process), signal.SIGINT)
    process.join()
    assert process.exitcode == 0
    (run_dir,) = (tmp_path / "runs").iterdir()
    run = RunFolder.open(run_dir)
    done = run.events("done")[-1]
    assert done["stopped"] and 2 <= done["steps"] < 2000 and run.events("stopped")
    assert (run_dir / "model.glb").stat().st_size > 1000 and (run_dir / "report.html").is_file()
    last = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert (
        f"exported at step {done['steps']} of 2000; to continue: python launch.py resume {run_dir}"
        in last
    )


def test_export_without_a_checkpoint_says_what_to_do(straight: Path, tmp_path: Path) -> None:
    config = quick_config(straight, tmp_path)
    run = RunFolder.create(config)
    with pytest.raises(UserError, match=r"no checkpoint yet.*resume"):
        pipeline.export_run(run.path, config)
    assert loop.load_checkpoint(journal_of(run), "coarse") is None
