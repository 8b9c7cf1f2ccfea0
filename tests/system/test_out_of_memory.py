"""Memory that runs out: told from other errors, and where nothing can be cut smaller, one line and
exit code 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
import torch

from tests.helpers.listening import Listener
from tests.helpers.tiny_run import tiny_config
from vp3d import build, finish, pipeline
from vp3d.cli import main
from vp3d.errors import ResourceError
from vp3d.runs.events import Watch
from vp3d.runs.folder import RunFolder
from vp3d.system.out_of_memory import is_out_of_memory, report_out_of_memory


def test_which_errors_are_about_memory() -> None:
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("x"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        assert is_out_of_memory(error)
    libraries = (
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `f`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    )
    searches = (
        "GET was unable to find an engine to execute this computation",
        "Unable to find a valid cuDNN algorithm to run",
    )
    assert all(is_out_of_memory(RuntimeError(words)) for words in (*libraries, *searches))
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))
    assert not is_out_of_memory(RuntimeError("size mismatch"))


def test_a_real_allocation_that_fails_is_told_and_others_are_not_touched() -> None:
    with (
        pytest.raises(ResourceError, match="^out of memory while trying: use less$"),
        report_out_of_memory("trying", "use less"),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    with (
        pytest.raises(RuntimeError, match="must match"),
        report_out_of_memory("trying", "use less"),
    ):
        torch.ones(2) + torch.ones(3)


def test_a_second_face_that_cannot_be_looked_for_costs_neither_pictures_nor_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(finish, "guess_views", full)
    config = tiny_config(tmp_path)
    listener = Listener()
    asset = pipeline.generate(config, watch=Watch(listener))
    lost = "warning: no Janus score: out of memory while looking for a second face"
    assert any(line.startswith(lost) for line in listener.lines)
    assert "views recognised" not in (asset.run_dir / "report.html").read_text(encoding="utf-8")
    assert (
        RunFolder.open(asset.run_dir).events("done") and (asset.run_dir / "preview.png").is_file()
    )


@pytest.mark.parametrize(
    ("stage", "doing"),
    [("load_prior", "loading the models"), ("make_visual_prompt", "making the visual")],
)
def test_models_that_do_not_fit_are_one_line(
    stage: str,
    doing: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> NoReturn:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation"
        )

    monkeypatch.setattr(build, stage, full)
    assert main.main(["a red sphere", "--preset", "draft", f"output_dir={tmp_path}"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        last.startswith(f"vp3d: out of memory while {doing}")
        and "configs/sd15-low-vram.yaml" in last
    )
