"""The loop's decisions on a stage that does what a script says: rates, roll-backs, restarts."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers.listening import Listener, journal_of
from vp3d.config.schema import Config
from vp3d.errors import DivergedError, OutOfMemoryError, UserError
from vp3d.runs.events import Preview, Step
from vp3d.runs.folder import RunFolder
from vp3d.train import checkpoint, loop
from vp3d.train.loop import LOG_EVERY, SNAPSHOT_EVERY
from vp3d.train.watchdog import (
    MIN_COLLAPSE_STEPS,
    MIN_RATE_SCALE,
    RESTART_RATE,
    RESTART_REGULARISERS,
    ROLLBACK_RATE,
)
from vp3d.types import Camera, Render

NAN = float("nan")


class Scripted:
    """A stage of one number that grows by 1 a step, with losses and opacities from a script.

    Attributes:
        rates: (step, scale) of every `set_rates`.
        loaded: (value, scale of the regularisers) of every `load_tensors`.
        drawn: the random number of every call of `step`.
    """

    name = "coarse"
    update = ("updating the number", "take a smaller one")
    identity: dict[str, Any] = {"optim.steps": 1}

    def __init__(self, losses: dict[int, float] | None = None, opacity: float = 0.3) -> None:
        self.value = torch.nn.Parameter(torch.zeros(1))
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD([self.value], lr=1.0)
        self.generators = {"noise": torch.Generator().manual_seed(1)}
        self.losses, self.opacity = losses or {}, opacity
        self.calls, self.shrunk, self.fail_at = 0, 0, -1
        self.rates: list[tuple[int, float]] = []
        self.loaded: list[tuple[float, float]] = []
        self.restarted: list[float] = []
        self.drawn: list[float] = []

    def step(self, i: int) -> dict[str, Tensor]:
        """The loss -value, or that of the script for this call."""
        call, self.calls = self.calls, self.calls + 1
        self.drawn.append(float(torch.rand(1, generator=self.generators["noise"])))
        if call == self.fail_at:
            raise torch.OutOfMemoryError("out of memory")
        loss = -self.value.sum() * self.losses.get(call, 1.0)
        numbers = {"opacity": torch.tensor(self.opacity), "samples": torch.tensor(8.0)}
        return {"loss": loss, **numbers}

    def health(self, numbers: dict[str, float]) -> float | None:
        return numbers["opacity"]

    def preview(self, camera: Camera, size: int) -> Render:
        self.shown = camera
        rays = len(camera) * size * size
        return Render(torch.full((rays, 3), 0.25), torch.full((rays,), 0.5), torch.zeros(rays))

    def finish(self) -> float:
        return self.value.item()

    def set_rates(self, i: int, scale: float) -> None:
        self.rates.append((i, scale))

    def restart(self, regulariser_scale: float) -> None:
        self.restarted.append(regulariser_scale)
        self.value.data.zero_()
        self.opacity = 0.3

    def shrink(self) -> None:
        self.shrunk += 1
        if self.shrunk > 2:
            raise OutOfMemoryError("nothing is left to make smaller")

    def tensors(self) -> dict[str, Tensor]:
        return {"value": self.value}

    def load_tensors(self, tensors: dict[str, Tensor], regulariser_scale: float) -> None:
        self.loaded.append((tensors["value"].item(), regulariser_scale))
        self.value.data.copy_(tensors["value"])


def config_of(folder: Path, steps: int) -> Config:
    config = Config(prompt="a red sphere", output_dir=str(folder))
    config.optim.steps, config.optim.checkpoint_every, config.optim.preview_every = steps, 100, 100
    config.optim.grad_clip, config.optim.bad_steps = 0.0, 20
    return config


def optimise(
    stage: Scripted, config: Config, run: RunFolder | None = None, listener: Listener | None = None
) -> tuple[RunFolder, loop.Outcome[float]]:
    run = run or RunFolder.create(config)
    journal = journal_of(run, listener or Listener())
    return run, loop.run(stage, config.optim, config.camera, journal)


def test_every_step_gets_its_number_and_the_rates_of_the_watchdog(tmp_path: Path) -> None:
    stage = Scripted({3: NAN, 5: NAN})
    _, outcome = optimise(stage, config_of(tmp_path, 8))
    scales = [1.0] * 4 + [ROLLBACK_RATE] * 2 + [ROLLBACK_RATE**2] * 2
    assert stage.rates == list(enumerate(scales)) and outcome.steps == 8 and not outcome.stopped


def test_a_roll_back_returns_to_the_newest_snapshot(tmp_path: Path) -> None:
    stage = Scripted({SNAPSHOT_EVERY + 3: NAN, SNAPSHOT_EVERY + 4: NAN})
    run, outcome = optimise(stage, config_of(tmp_path, SNAPSHOT_EVERY + 6))
    assert stage.loaded == [(float(SNAPSHOT_EVERY), 1.0)] * 2
    assert outcome.result == SNAPSHOT_EVERY + 1.0, "three steps were rolled back, two skipped"
    assert [event["in_a_row"] for event in run.events("bad_step")] == [1, 2]


def test_after_a_restart_rates_and_regularisers_stay_low_through_a_roll_back(
    tmp_path: Path,
) -> None:
    stage = Scripted({MIN_COLLAPSE_STEPS + 2: NAN}, opacity=0.0)
    run, outcome = optimise(stage, config_of(tmp_path, 30))
    assert stage.restarted == [RESTART_REGULARISERS]
    assert stage.loaded == [(0.0, RESTART_REGULARISERS)]
    again = stage.rates[MIN_COLLAPSE_STEPS:]
    scales = [RESTART_RATE] * 3 + [RESTART_RATE * ROLLBACK_RATE] * 27
    assert again == list(enumerate(scales)), "from step 0 on, lower, and lower still"
    assert outcome.steps == 30 and len(run.events("restart")) == 1
    rates = [event["rate_scale"] for event in run.events("step")]
    assert rates[0] == 0.5 and rates[-1] == 0.25, "the log has the rates in use"


def test_a_restart_begins_at_step_0_with_the_initial_field(tmp_path: Path) -> None:
    stage, listener = Scripted(opacity=0.99), Listener()
    run, outcome = optimise(stage, config_of(tmp_path, 20), listener=listener)
    assert outcome.result == 20.0 and stage.calls == 20 + MIN_COLLAPSE_STEPS
    (event,) = run.events("restart")
    assert (event["reason"], event["step"]) == ("solid", MIN_COLLAPSE_STEPS)
    found = loop.load_checkpoint(journal_of(run), "coarse")
    assert found is not None and found.meta["loop"]["iteration"] == 20 + MIN_COLLAPSE_STEPS
    assert [event["step"] for event in run.events("checkpoint")] == [20], "none at step 0"
    steps = [event.step for event in listener.events if isinstance(event, Step)]
    assert steps == [*range(1, MIN_COLLAPSE_STEPS), *range(21)]


def test_a_resumed_run_keeps_low_rates_and_regularisers(tmp_path: Path) -> None:
    config = config_of(tmp_path, 10)
    first = Scripted(opacity=0.0)
    run, _ = optimise(first, config)
    config.optim.steps = 12
    second = Scripted()
    optimise(second, config, run)
    assert second.loaded == [(10.0, RESTART_REGULARISERS)]
    assert second.rates == [(10, RESTART_RATE), (11, RESTART_RATE)]
    assert second.drawn == draws(17)[15:], "and its random numbers go on"


def draws(count: int) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    return [float(torch.rand(1, generator=generator)) for _ in range(count)]


def test_rates_never_fall_below_their_floor_nor_rise(tmp_path: Path) -> None:
    bad = {0: NAN, 1: NAN, 2: NAN, 3: NAN, 4: NAN, 12: NAN, 14: NAN}
    stage = Scripted(bad, opacity=0.0)
    optimise(stage, config_of(tmp_path, 40))
    scales = [scale for _, scale in stage.rates]
    assert stage.restarted and min(scales) == MIN_RATE_SCALE
    assert all(later <= earlier for earlier, later in zip(scales, scales[1:], strict=False))


def test_too_many_bad_steps_stop_the_run(tmp_path: Path) -> None:
    config = config_of(tmp_path, 20)
    config.optim.bad_steps = 3
    stage = Scripted({4: NAN, 5: NAN, 7: NAN, 8: NAN, 9: NAN})
    run = RunFolder.create(config)
    with pytest.raises(DivergedError, match="3 steps in a row .*the loss: loss, at step 9"):
        optimise(stage, config, run)
    assert stage.calls == 10 and len(run.events("failed")) == 1


def test_every_event_of_a_second_stage_has_its_name(tmp_path: Path) -> None:
    class Second(Scripted):
        name = "refine"

    stop = threading.Event()
    stop.set()
    stage, config = Second({3: NAN}, opacity=0.0), config_of(tmp_path, MIN_COLLAPSE_STEPS + 9)
    config.optim.bad_steps = 2
    run, _ = optimise(stage, config)
    config.optim.steps = 99
    loop.run(Second(), config.optim, config.camera, journal_of(run, stop=stop))
    with pytest.raises(DivergedError):
        optimise(Second({0: NAN, 1: NAN}), config, run)
    kinds = {event["kind"] for event in run.events()} - {"warning"}
    own = ("step", "checkpoint", "stopped", "resume", "bad_step", "rollback", "restart", "failed")
    assert kinds == {f"refine_{kind}" for kind in own}


def test_memory_that_runs_out_in_an_update_has_the_advice_of_its_stage() -> None:
    class Full(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            raise torch.OutOfMemoryError("out of memory")

    stage = Scripted()
    stage.optimizer = Full([stage.value], lr=1.0)
    with pytest.raises(OutOfMemoryError, match="updating the number: take a smaller one"):
        loop.apply(stage)


def test_the_gradient_is_clipped_to_its_norm(tmp_path: Path) -> None:
    stage = Scripted({0: 8.0})
    for clip, gradient in ((0.5, -0.5), (0.0, -1.0), (2.0, -1.0)):
        numbers, problem = loop.differentiate(stage, stage.step(0), clip)
        assert problem == "" and numbers["opacity"] == pytest.approx(0.3)
        assert stage.value.grad is not None
        assert float(stage.value.grad) == pytest.approx(gradient, rel=1e-4)


def test_parameters_that_are_not_finite_after_the_update_are_rolled_back(tmp_path: Path) -> None:
    stage = Scripted({0: 1.0e30})
    stage.optimizer.param_groups[0]["lr"] = 1.0e9  # its product with the gradient is infinite
    run, outcome = optimise(stage, config_of(tmp_path, 1))
    assert [event["what"] for event in run.events("bad_step")] == ["the parameters"]
    assert outcome.result == 0.0


def test_out_of_memory_repeats_the_step_with_the_same_random_numbers(tmp_path: Path) -> None:
    stage = Scripted()
    stage.fail_at = 1
    optimise(stage, config_of(tmp_path, 3))
    assert stage.shrunk == 1
    expected = draws(3)
    assert stage.drawn == [expected[0], expected[1], expected[1], expected[2]]


def test_log_checkpoints_and_previews_at_their_intervals(tmp_path: Path) -> None:
    config = config_of(tmp_path, 23)
    config.optim.checkpoint_every, config.optim.preview_every = 7, 8
    listener = Listener()
    run, _ = optimise(Scripted(), config, listener=listener)
    assert [e["step"] for e in run.events("step")] == [*range(LOG_EVERY, 23, LOG_EVERY), 23]
    assert [e["step"] for e in run.events("checkpoint")] == [7, 14, 21, 23]
    assert len([e for e in listener.events if isinstance(e, Preview)]) == 2
    assert (SNAPSHOT_EVERY, LOG_EVERY) == (10, 5)
    shown = [event for event in listener.events if isinstance(event, Step)]
    assert [event.step for event in shown] == list(range(1, 24))
    assert shown[0].steps == 23 and shown[0].values["samples"] == 8.0
    left = [event.values["eta_s"] / event.values["seconds_a_step"] for event in shown]
    assert left == pytest.approx(list(range(22, -1, -1)))


def test_a_checkpoint_comes_with_a_snapshot(tmp_path: Path) -> None:
    config = config_of(tmp_path, 9)
    config.optim.checkpoint_every = 4
    stage = Scripted({6: NAN})
    optimise(stage, config)
    assert stage.loaded == [(4.0, 1.0)]


@pytest.mark.parametrize(("restarts", "why"), [(0, "too late to restart"), (1, "after a restart")])
def test_a_collapse_without_a_restart_is_a_warning(tmp_path: Path, restarts: int, why: str) -> None:
    config = config_of(tmp_path, 10)
    journal = journal_of(RunFolder.create(config))
    state = loop.LoopState(8, 8, loop.Watchdog(restarts=restarts, collapsed_for=4))
    watched = loop.Loop(Scripted(), config.optim, config.camera, journal, state, {}, loop.Pace())
    loop.judge_health(watched, 0.0)
    (warning,) = journal.run.events("warning")
    assert f"became empty at step 9 of 10, {why}" in warning["message"].replace("again, ", "")
    assert "nothing at all" in warning["message"] and (state.step, state.iteration) == (9, 9)
    loop.judge_health(watched, None)
    assert state.step == 10 and len(journal.run.events("warning")) == 1


def test_copies_are_cut_off_from_the_graph() -> None:
    value = torch.ones(2, requires_grad=True)
    copy = loop.clone({"value": value})["value"]
    assert not copy.requires_grad and copy.data_ptr() != value.data_ptr()


def test_a_checkpoint_may_follow_the_first_step(tmp_path: Path) -> None:
    config = config_of(tmp_path, 2)
    config.optim.checkpoint_every = 1
    run, _ = optimise(Scripted({0: NAN}), config)
    assert [event["step"] for event in run.events("checkpoint")] == [1, 2]
    found = loop.load_checkpoint(journal_of(run), "coarse")
    assert found is not None and found.meta["loop"]["iteration"] == 2, "a bad step is one too"
    assert found.meta["settings"] == Scripted.identity and found.meta["stage"] == "coarse"


def test_other_settings_are_refused_and_older_checkpoints_by_their_hash(tmp_path: Path) -> None:
    config = config_of(tmp_path, 2)
    run, _ = optimise(Scripted(), config)
    (path, *_) = checkpoint.list_checkpoints(run.checkpoints("coarse"))
    changed = Scripted()
    changed.identity = {"optim.steps": 2}
    with pytest.raises(UserError, match=r"other settings than .*: optim.steps; undo"):
        optimise(changed, config, run)
    loop.check_same_settings(run, path, {"config_hash": run.version_1_hash()}, {})
    with pytest.raises(UserError, match="was changed after the checkpoint"):
        loop.check_same_settings(run, path, {"config_hash": "another"}, {})


def test_a_checkpoint_that_names_no_version_was_optimised_without_fog(tmp_path: Path) -> None:
    """It is of version 2; version 3 added the fog loss, which is on by default."""
    run = RunFolder.create(config_of(tmp_path, 2))
    stored = {"loss": {"sparsity": 0.5}}
    off = {"loss": {"sparsity": 0.5, "fog": {"start": 0.0, "end": 0.0, "from_": 0.0, "to": 1.0}}}
    on = {"loss": {"sparsity": 0.5, "fog": {"start": 1.0, "end": 1.0, "from_": 0.0, "to": 1.0}}}
    path = tmp_path / "00000001.safetensors"
    loop.check_same_settings(run, path, {"settings": stored}, off, default=on)
    with pytest.raises(UserError, match=r"other settings than .*loss\.fog"):
        loop.check_same_settings(run, path, {"settings": stored}, on, default=on)
    newer = {"settings": stored, "config_version": 3}
    loop.check_same_settings(run, path, newer, on, default=on)


def test_a_stop_before_the_first_step_keeps_a_checkpoint(tmp_path: Path) -> None:
    config, stop = config_of(tmp_path, 9), threading.Event()
    stop.set()
    run = RunFolder.create(config)
    outcome = loop.run(Scripted(), config.optim, config.camera, journal_of(run, stop=stop))
    assert outcome.stopped and outcome.steps == 0
    assert len(checkpoint.list_checkpoints(run.checkpoints("coarse"))) == 1
    assert [event["steps"] for event in run.events("stopped")] == [9]


def test_pace_is_a_running_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 102.0, 103.0, 103.0])
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(now))
    pace = loop.Pace()
    assert pace.tick(10, 50.0) == {"seconds_a_step": 2.0, "eta_s": 20.0, "samples_per_s": 25.0}
    second = pace.tick(9, 50.0)
    assert second["seconds_a_step"] == pytest.approx(0.9 * 2.0 + 0.1 * 1.0)
    assert second["eta_s"] == pytest.approx(9 * 1.9) and second["samples_per_s"] == 50.0
    assert pace.tick(8, 50.0)["samples_per_s"] == pytest.approx(50.0 / 1.0e-9), "no time at all"


def test_a_stage_that_counts_no_samples_has_a_pace_of_none(tmp_path: Path) -> None:
    class Uncounted(Scripted):
        def step(self, i: int) -> dict[str, Tensor]:
            numbers = super().step(i)
            del numbers["samples"]
            return numbers

    run, _ = optimise(Uncounted(), config_of(tmp_path, 1))
    (event,) = run.events("step")
    assert event["samples_per_s"] == 0.0 < event["seconds_a_step"]


def test_the_preview_is_four_views_over_white(tmp_path: Path) -> None:
    config, stage = config_of(tmp_path, 1), Scripted()
    config.optim.preview_every = 1
    config.camera.distance, config.camera.fov_deg = 3.5, 33.0
    run, _ = optimise(stage, config)
    with Image.open(run.preview_file) as picture:
        values = np.array(picture)
    assert values.shape == (96, 4 * 96, 3)
    assert set(values.ravel()) == {191}, "a quarter, and half of the white behind it"
    assert stage.shown.azimuth_deg.tolist() == [0.0, 90.0, 180.0, 270.0]
    assert stage.shown.elevation_deg.tolist() == [15.0] * 4
    assert stage.shown.distance.tolist() == [3.5] * 4 and stage.shown.fov_deg.tolist() == [33.0] * 4
