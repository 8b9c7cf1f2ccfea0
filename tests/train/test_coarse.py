"""The coarse stage and its loop, on a real field and renderer, guided by wrappers around a simple
target.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.listening import Listener, journal_of, optimise
from tests.helpers.towards_red import NOTHING, Terms, TowardsRed
from vp3d import build
from vp3d.config.schema import Config, Schedule
from vp3d.errors import DivergedError, UserError
from vp3d.fields.nerf import Field, build_field
from vp3d.guidance.reward_term import Reward
from vp3d.guidance.vp_sds import Target
from vp3d.render.camera import ring
from vp3d.runs.events import Event, Step, Watch
from vp3d.runs.folder import RunFolder
from vp3d.runs.journal import Journal
from vp3d.train import checkpoint, loop
from vp3d.train.coarse import Coarse
from vp3d.train.generators import make_generator, make_generators


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def small_config(steps: int = 12) -> Config:
    config = Config(prompt="a red sphere", seed=5)
    config.field.resolution = 12
    config.render.resolution, config.render.samples, config.render.occupancy_resolution = 16, 12, 8
    config.render.occupancy_every = 3
    config.render.background_min = config.render.background_max = 1.0
    config.optim.lr_albedo = 0.2
    (
        config.optim.steps,
        config.optim.views,
        config.optim.checkpoint_every,
        config.optim.preview_every,
    ) = steps, 2, 4, 50
    return config


class FailingAt(TowardsRed):
    """`TowardsRed`, not a number at the steps in `calls`."""

    def __init__(self, calls: range) -> None:
        super().__init__()
        self.calls = calls

    def reuse(self, rgb: Tensor, pull: Target) -> Terms:
        """The loss of views rgb [B, 3, H, W] in [0, 1]."""
        terms = super().reuse(rgb, pull)
        return {"sds": terms["sds"] * float("nan")} if self.used - 1 in self.calls else terms


def make_stage(config: Config, run: RunFolder, guidance: TowardsRed | None = None) -> Coarse:
    field = build_field(config.field, make_generator(config.seed, "field"))
    nothing = torch.zeros(1, 1, 1)
    redness = Reward(
        lambda rgb, target: (rgb[:, 0] - target).mean((1, 2)),
        lambda camera: nothing,
        config.rewards.text_image,
    )
    guidance = guidance or TowardsRed()
    return Coarse(
        build.coarse_settings(config),
        field,
        guidance,
        NOTHING,
        {"text_image": redness},
        make_generators(config.seed),
        run.event,
    )


def run_once(
    config: Config, folder: Path, guidance: TowardsRed | None = None
) -> tuple[RunFolder, loop.Outcome[Field]]:
    config.output_dir = str(folder)
    run = RunFolder.create(config)
    return run, optimise(make_stage(config, run, guidance), config, run)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def final(run: RunFolder) -> dict[str, Tensor]:
    found = loop.load_checkpoint(journal_of(run), "coarse")
    assert found is not None
    return found.tensors


def test_step_has_named_terms_and_the_loss_is_their_weighted_sum(tmp_path: Path) -> None:
    config = small_config()
    config.output_dir = str(tmp_path)
    config.rewards.text_image.begin = 0.0
    config.loss.opacity, config.loss.orientation = Schedule(0.5, 0.5), Schedule(0.25, 0.25)
    stage = make_stage(config, RunFolder.create(config))
    terms = stage.step(0)
    weights = {
        "sds": 30.0,
        "text_image": 0.1,
        "entropy": 0.5,
        "sparsity": 0.01,
        "fog": 1.0,
        "smoothness": 0.01,
        "orientation": 0.25,
    }
    assert terms.keys() == {*weights, "loss", "opacity", "samples", "reward_text_image"}
    assert terms["loss"].item() == pytest.approx(
        sum(weights[name] * terms[name].item() for name in weights), rel=1e-5
    )
    assert 0.0 < terms["opacity"].item() < 1.0
    assert 0 < terms["samples"].item() < 2 * 16 * 16 * 12, "empty cells are not evaluated"
    terms["loss"].backward()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all() for p in stage.field.parameters()
    )


def test_grey_backgrounds_are_uniform_between_their_bounds(tmp_path: Path) -> None:
    config = small_config()
    config.output_dir, config.optim.views = str(tmp_path), 400
    config.render.background_min, config.render.background_max = 0.2, 0.6
    stage = make_stage(config, RunFolder.create(config))
    _, grey = stage._views()
    assert grey.shape == (400,) and 0.2 <= grey.min() < 0.22 and 0.58 < grey.max() <= 0.6
    assert float(grey.mean()) == pytest.approx(0.4, abs=0.02)
    assert float(grey.std()) == pytest.approx(0.4 / 12**0.5, abs=0.01)


def test_the_occupancy_grid_is_updated_at_the_multiples_of_its_interval(tmp_path: Path) -> None:
    config = small_config()
    config.output_dir = str(tmp_path)
    stage, updated = make_stage(config, RunFolder.create(config)), []
    update = stage.occupancy.update
    stage.occupancy.update = lambda *given: (updated.append(step), update(*given))
    for step in range(8):
        stage.step(step)
    assert updated == [0, 3, 6]


def test_reward_before_its_window_is_shown_but_does_not_act(tmp_path: Path) -> None:
    config = small_config()
    config.output_dir = str(tmp_path)
    terms = make_stage(config, RunFolder.create(config)).step(0)
    assert terms["text_image"].item() == 0.0 and terms["reward_text_image"].item() > 0.0


def test_a_reward_with_a_ground_sees_the_views_there(tmp_path: Path) -> None:
    config = small_config()
    config.output_dir = str(tmp_path)
    config.render.background_min = config.render.background_max = 0.0
    stage = make_stage(config, RunFolder.create(config))
    stage.field.get_parameter("raw_density").data.fill_(-30.0)
    seen: list[Tensor] = []

    def score(rgb: Tensor, target: Tensor) -> Tensor:
        seen.append(rgb)
        return rgb.mean((1, 2, 3))

    stage.rewards = {
        "text_image": Reward(
            score, lambda camera: torch.zeros(1, 1), config.rewards.text_image, 0.7
        )
    }
    stage.step(0)
    torch.testing.assert_close(seen[0], torch.full((2, 3, 16, 16), 0.7))


def test_no_clipping_at_zero(tmp_path: Path) -> None:
    config = small_config()
    config.output_dir = str(tmp_path)
    stage = make_stage(config, RunFolder.create(config))
    before = loop.clone(stage.tensors())
    assert loop.differentiate(stage, stage.step(0), 0.0)[1] == "" == loop.apply(stage)
    assert not same(before, {**before, **stage.tensors()})


def test_streams_depend_on_seed_and_name_alone() -> None:
    draw = {name: torch.rand(4, generator=g) for name, g in make_generators(7).items()}
    alone = torch.rand(4, generator=make_generator(7, "noise"))
    assert torch.equal(draw["noise"], alone)
    assert len({tuple(values.tolist()) for values in draw.values()}) == len(draw)
    assert not torch.equal(alone, torch.rand(4, generator=make_generator(8, "noise")))
    make_generator(2**63 - 1, "noise")


def test_rates_fall_by_cosine_to_their_final_share(tmp_path: Path) -> None:
    config = small_config(100)
    config.optim.lr_density = 0.05
    config.output_dir = str(tmp_path)
    stage = make_stage(config, RunFolder.create(config))
    rates = []
    for i in (0, 50, 100):
        stage.set_rates(i, 0.5)
        rates.append([group["lr"] for group in stage.optimizer.param_groups])
    assert rates[0] == pytest.approx([0.025, 0.1])
    assert rates[1] == pytest.approx([0.025 * 0.55, 0.1 * 0.55])
    assert rates[2] == pytest.approx([0.0025, 0.01])


def test_loop_learns_and_keeps_its_files(tmp_path: Path) -> None:
    run, outcome = run_once(small_config(20), tmp_path)
    steps = run.events("step")
    assert outcome.steps == 20 and not outcome.stopped
    assert steps[-1]["sds"] < 0.9 * steps[0]["sds"]
    assert [event["step"] for event in run.events("checkpoint")] == [4, 8, 12, 16, 20]
    assert len(checkpoint.list_checkpoints(run.checkpoints("coarse"))) == checkpoint.KEEP


def test_an_estimate_serves_its_steps_from_the_same_views(tmp_path: Path) -> None:
    config = small_config()
    config.output_dir, config.guidance.estimate_every = str(tmp_path), 3
    config.render.background_min = 0.0
    guidance = TowardsRed()
    stage = make_stage(config, RunFolder.create(config), guidance)
    views = []
    for i in range(7):
        stage.step(i)
        views.append(stage.reused)
    assert (guidance.asked, guidance.used) == (3, 7)
    first, second, over, other = views[0], views[1], views[2], views[3]
    assert (
        first
        and second
        and other
        and over is None
        and (first.steps_left, second.steps_left) == (2, 1)
    )
    assert (
        first.camera is second.camera
        and first.grey is second.grey
        and first.target is second.target
    )
    assert not torch.equal(first.camera.azimuth_deg, other.camera.azimuth_deg) and not torch.equal(
        first.grey, other.grey
    )
    kept = loop.clone(stage.tensors())
    stage.restart(1.0)
    assert stage.reused is None and not any(name.startswith("held.") for name in stage.tensors())
    stage.load_tensors(kept, 1.0)
    assert stage.reused is not None and same(kept, stage.tensors())


def test_same_seed_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    a, b = (final(run_once(small_config(), tmp_path)[0]) for _ in range(2))
    other = small_config()
    other.seed = 6
    assert same(a, b) and not same(a, final(run_once(other, tmp_path)[0]))


@pytest.mark.parametrize(
    "every", [1, 2, 3]
)  # steps an estimate; at 3, step 8 is in the midst of those of one
def test_resume_from_any_checkpoint_is_bit_for_bit(tmp_path: Path, every: int) -> None:
    config = small_config()
    config.guidance.estimate_every = every
    straight = final(run_once(config, tmp_path)[0])
    run, _ = run_once(config, tmp_path)
    checkpoint.list_checkpoints(run.checkpoints("coarse"))[
        -1
    ].unlink()  # as if killed between step 8 and 12
    optimise(make_stage(config, run), config, run)
    assert run.events("resume")[-1]["step"] == 8
    assert same(straight, final(run))


def test_resume_passes_over_a_damaged_checkpoint_with_a_warning(tmp_path: Path) -> None:
    config = small_config()
    run, _ = run_once(config, tmp_path)
    straight = final(run)
    newest = checkpoint.list_checkpoints(run.checkpoints("coarse"))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    listener = Listener()
    optimise(make_stage(config, run), config, run, listener)
    assert newest.name in run.events("warning")[-1]["message"] and newest.name in listener.lines[0]
    assert same(straight, final(run))


def test_resume_refuses_another_configuration(tmp_path: Path) -> None:
    config = small_config()
    run, _ = run_once(config, tmp_path)
    config.optim.lr_density = 0.5
    with pytest.raises(UserError, match=r"other settings than .*: optim.lr_density; undo"):
        optimise(make_stage(config, run), config, run)


def test_nan_rolls_back_and_goes_on(tmp_path: Path) -> None:
    config = small_config(16)
    run, outcome = run_once(config, tmp_path, FailingAt(range(6, 8)))
    assert outcome.steps == 16
    assert [event["step"] for event in run.events("bad_step")] == [6, 7]
    assert [event["rate_scale"] for event in run.events("rollback")] == [0.5, 0.25]
    assert all(
        torch.isfinite(tensor).all()
        for name, tensor in final(run).items()
        if name.startswith("field.")
    )
    assert run.events("step")[-1]["sds"] < run.events("step")[0]["sds"]


def test_roll_back_restores_the_snapshot_even_when_parameters_are_bad(tmp_path: Path) -> None:
    config = small_config()
    config.output_dir = str(tmp_path)
    run = RunFolder.create(config)
    stage = make_stage(config, run)
    good = loop.clone(stage.tensors())
    state = loop.Loop(
        stage, config.optim, config.camera, journal_of(run), loop.LoopState(), good, loop.Pace()
    )
    for parameter in stage.field.parameters():
        parameter.data.fill_(float("nan"))
    loop.roll_back(state, "the parameters")
    assert same(good, stage.tensors()) and state.state.step == 1


def test_nan_that_stays_stops_with_a_diagnosis(tmp_path: Path) -> None:
    config = small_config(30)
    config.optim.bad_steps = 4
    with pytest.raises(DivergedError, match=r"4 steps in a row.*the loss: .*sds.*step 8") as caught:
        run_once(config, tmp_path, FailingAt(range(5, 1000)))
    assert "\n" not in str(caught.value)
    (run_dir,) = tmp_path.iterdir()
    assert RunFolder.open(run_dir).events("failed")[-1]["message"] == str(caught.value)


def test_infinite_gradient_is_caught_before_it_reaches_the_parameters(tmp_path: Path) -> None:
    config = small_config()
    config.output_dir = str(tmp_path)
    stage = make_stage(config, RunFolder.create(config))
    before = loop.clone(stage.tensors())
    parameter = next(stage.field.parameters())
    loss = (parameter - parameter.detach()).sum().sqrt()  # 0, with an infinite derivative
    assert loop.differentiate(stage, {"loss": loss}, 1.0) == ({"loss": 0.0}, "the gradient")
    assert same(before, stage.tensors())


@pytest.mark.parametrize(("raw_density", "kind"), [(-12.0, "empty"), (400.0, "solid")])
def test_collapse_restarts_once_and_says_so(tmp_path: Path, raw_density: float, kind: str) -> None:
    config = small_config(30)
    config.camera.fov_deg = 30.0  # the cube fills the frame
    config.output_dir = str(tmp_path)
    run = RunFolder.create(config)
    stage = make_stage(config, run)
    initial = stage.field.state_dict()["raw_density"].clone()
    stage.field.get_parameter("raw_density").data.fill_(raw_density)
    listener = Listener()
    outcome = optimise(stage, config, run, listener)
    (restart,) = run.events("restart")
    assert restart["reason"] == kind and restart["step"] == 5
    assert any(kind in line for line in listener.lines) and outcome.steps == 30
    found = loop.load_checkpoint(journal_of(run), "coarse")
    assert found is not None and found.meta["iteration"] == 35
    assert found.meta["loop"]["watchdog"]["restarts"] == 1 and stage.regulariser_scale < 1.0
    assert torch.equal(stage.initial["field.raw_density"], initial)
    assert 0.01 < run.events("step")[-1]["opacity"] < 0.95


@pytest.mark.parametrize(
    ("step", "restarts", "why"),
    [(20, 0, "too late to restart"), (2, 1, "again, after a restart")],
)
def test_a_collapse_that_cannot_be_helped_is_said(
    tmp_path: Path, step: int, restarts: int, why: str
) -> None:
    config = small_config(30)
    config.output_dir = str(tmp_path)
    run = RunFolder.create(config)
    stage, listener = make_stage(config, run), Listener()
    state = loop.LoopState(step, step, loop.Watchdog(restarts=restarts, collapsed_for=4))
    journal = journal_of(run, listener)
    watched = loop.Loop(stage, config.optim, config.camera, journal, state, {}, loop.Pace())
    for opacity in (0.0, 0.0):
        loop.judge_health(watched, opacity)
    (warning,) = run.events("warning")
    assert (
        listener.lines == [f"warning: {warning['message']}"]
        and state.step == step + 2
        and not run.events("restart")
    )
    assert f"became empty at step {step + 1} of 30, {why}" in warning["message"]


def test_stop_flag_keeps_what_there_is_and_resume_finishes(tmp_path: Path) -> None:
    straight = final(run_once(small_config(), tmp_path)[0])
    config = small_config()
    config.output_dir = str(tmp_path)
    run, stop = RunFolder.create(config), threading.Event()

    def stop_at_5(event: Event) -> None:
        if isinstance(event, Step) and event.step == 5:
            stop.set()

    outcome = loop.run(
        make_stage(config, run),
        config.optim,
        config.camera,
        Journal(run, Watch(stop_at_5, stop)),
    )
    assert outcome.stopped and outcome.steps == 5 and run.events("stopped")
    assert optimise(make_stage(config, run), config, run).steps == 12
    assert same(straight, final(run))


def test_preview_has_no_chance_and_no_graph(tmp_path: Path) -> None:
    config = small_config()
    config.output_dir = str(tmp_path)
    stage = make_stage(config, RunFolder.create(config))
    a, b = (stage.preview(ring(2, 10.0, 2.9, 40.0), 8) for _ in range(2))
    assert torch.equal(a.rgb, b.rgb) and not a.rgb.requires_grad and a.opacity.shape == (2 * 8 * 8,)
