"""The refine stage: rounds, guard and resumption, with teachers that are right or wrong."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.listening import journal_of
from tests.helpers.small_refine import (
    GREY,
    DiscTeacher,
    ball_start,
    small_config,
    small_stage,
)
from vp3d.config.schema import Config
from vp3d.errors import OutOfMemoryError, UserError
from vp3d.render.raster_soft import SoftRender
from vp3d.runs.folder import RunFolder
from vp3d.train import checkpoint, loop, mesh_losses
from vp3d.train.refine import Refine, fallen
from vp3d.train.surface_parameters import compose, decompose, mesh_of, start_of
from vp3d.types import Camera, Mesh


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class StopAfter:
    """A request to stop that comes after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def run_of(folder: Path) -> RunFolder:
    return RunFolder.create(Config(prompt="a red sphere", output_dir=str(folder)))


def optimise(stage: Refine, run: RunFolder, stop: Any = None) -> loop.Outcome[Mesh]:
    config = Config()
    config.optim.steps, config.optim.checkpoint_every = stage.config.steps, 2
    config.optim.preview_every = 1000
    journal = journal_of(run, stop=stop or threading.Event())
    return loop.run(stage, config.optim, config.camera, journal)


def same(a: Mesh, b: Mesh) -> bool:
    arrays = [(getattr(a, name), getattr(b, name)) for name in ("vertices", "faces", "texture")]
    return all(one.tobytes() == two.tobytes() for one, two in arrays)


def test_it_moves_and_paints_the_mesh_towards_the_pictures(tmp_path: Path) -> None:
    teacher = DiscTeacher(0.62)
    stage = small_stage(small_config(steps=20, lr_texture=0.05), teacher)
    start = stage.start
    mesh = optimise(stage, run_of(tmp_path)).result
    assert teacher.strengths == [0.5, 0.2]
    before, now = (v.norm(dim=1).mean() for v in (start.vertices, torch.from_numpy(mesh.vertices)))
    assert float(now) > float(before) + 0.01, "the discs are larger than the ball"
    assert mesh.texture is not None
    assert mesh.texture[..., 2].mean() > mesh.texture[..., 0].mean() + 30.0, "and blue, not red"
    assert [event["kept"] for event in stage.heard] == [True, True]


@pytest.mark.parametrize("change", ["geometry", "texture"])
def test_it_changes_only_what_it_may(change: str, tmp_path: Path) -> None:
    stage = small_stage(small_config(change=change), DiscTeacher(0.62))
    optimise(stage, run_of(tmp_path))
    moved = bool((stage.surface.vertices() != stage.start.vertices).any())
    painted = bool((stage.surface.texture() - stage.start.texture).abs().max() > 1e-6)
    assert (moved, painted) == (change == "geometry", change == "texture")


@pytest.mark.parametrize("steps", [2, 6])
def test_killed_in_each_round_it_resumes_bit_for_bit(steps: int, tmp_path: Path) -> None:
    straight = optimise(small_stage(small_config(), DiscTeacher(0.62)), run_of(tmp_path / "a"))
    run = run_of(tmp_path / "b")
    stopped = optimise(small_stage(small_config(), DiscTeacher(0.62)), run, StopAfter(steps + 1))
    assert stopped.stopped and stopped.steps == steps + 1
    newest = checkpoint.list_checkpoints(run.checkpoints("refine"))[-1]
    newest.unlink()  # a killed process writes none: its last is that of two steps
    again = small_stage(small_config(), DiscTeacher(0.62), seed=99)  # its generators are restored
    second = optimise(again, run)
    assert not second.stopped and same(straight.result, second.result)
    assert run.events("refine_resume")[-1]["step"] == steps
    assert not run.events("step") and run.events("refine_step")


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    optimise(small_stage(small_config(), DiscTeacher(0.62)), run, StopAfter(2))
    with pytest.raises(UserError, match="refine.views"):
        optimise(small_stage(small_config(views=3), DiscTeacher(0.62)), run)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    results = [
        optimise(small_stage(small_config(), DiscTeacher(0.62), seed=seed), run_of(tmp_path)).result
        for seed in (1, 1, 2)
    ]
    assert same(results[0], results[1]) and not same(results[0], results[2])


def test_a_round_that_makes_a_figure_worse_is_taken_back(tmp_path: Path) -> None:
    def likes_red(drawn: SoftRender, camera: Camera) -> dict[str, float]:
        rgb = drawn.over(GREY)
        return {"red": float((rgb[:, 0] - rgb[:, 2]).mean())}

    config = small_config(steps=8, lr_texture=0.05)
    stage = small_stage(config, DiscTeacher(0.55), likes_red)
    unharmed = mesh_of(stage.start, stage.start.vertices, stage.start.texture)
    mesh = optimise(stage, run_of(tmp_path)).result
    assert [event["kept"] for event in stage.heard] == [False, False]
    assert "red fell from" in stage.heard[0]["reason"]
    assert same(mesh, unharmed), "returned as it was given"


def test_the_best_round_is_returned_and_not_the_last(tmp_path: Path) -> None:
    figures = iter([2.0, 1.0, 1.5])  # round 1, the start, round 2

    def first_then_worse(drawn: SoftRender, camera: Camera) -> dict[str, float]:
        return {"figure": next(figures)}

    stage = small_stage(small_config(), DiscTeacher(0.62), first_then_worse)
    mesh = optimise(stage, run_of(tmp_path)).result
    assert [event["kept"] for event in stage.heard] == [True, False]
    assert not stage.unchanged
    one_round = small_stage(small_config(strengths=[0.5]), DiscTeacher(0.62))
    assert same(mesh, optimise(one_round, run_of(tmp_path)).result)


def test_small_losses_of_several_rounds_do_not_add_up(tmp_path: Path) -> None:
    figures = iter([0.985, 1.0, 0.970])  # round 1, the start, round 2: each within 2 % of the last

    def sinking(drawn: SoftRender, camera: Camera) -> dict[str, float]:
        return {"figure": next(figures)}

    stage = small_stage(small_config(), DiscTeacher(0.62), sinking)
    run = run_of(tmp_path)
    optimise(stage, run, StopAfter(6))  # in round 2, which is judged as far as it is
    assert [event["kept"] for event in stage.heard] == [True, False]
    assert "figure fell from 1.000" in stage.heard[1]["reason"]
    again = small_stage(small_config(), DiscTeacher(0.62), sinking)
    again.load_tensors(stage.tensors(), 1.0)
    assert again.highest == {"figure": 1.0}, "the start is not asked about again"
    figures = iter([0.981])
    optimise(again, run)
    assert [event["kept"] for event in again.heard] == [True]
    assert again.highest == {"figure": 1.0}


def test_a_mesh_that_shrinks_too_far_is_taken_back(tmp_path: Path) -> None:
    config = small_config(strengths=[0.5], steps=30, lr_vertices=0.02, smoothness=0.0, bending=0.0)
    stage = small_stage(config, DiscTeacher(0.48))
    optimise(stage, run_of(tmp_path))
    assert [event["kept"] for event in stage.heard] == [False]
    assert "overlap" in stage.heard[0]["reason"]


def test_pictures_of_something_else_change_nothing(tmp_path: Path) -> None:
    asked = []

    def counts(drawn: SoftRender, camera: Camera) -> dict[str, float]:
        asked.append(len(camera))
        return {}

    stage = small_stage(small_config(), DiscTeacher(0.2), counts)
    unharmed = mesh_of(stage.start, stage.start.vertices, stage.start.texture)
    mesh = optimise(stage, run_of(tmp_path)).result
    weight = stage.objective.tensors()["weight"]
    assert float(weight.max()) == pytest.approx(0.1), "every view keeps its own render"
    assert same(mesh, unharmed) and stage.unchanged
    said = [(event["kept"], event["reason"]) for event in stage.heard]
    assert said == 2 * [(False, "nothing changed")]
    assert not asked, "the guard renders and judges nothing"


def test_a_stop_before_the_first_step_returns_the_start(tmp_path: Path) -> None:
    stage = small_stage(small_config(), DiscTeacher(0.62))
    outcome = optimise(stage, run_of(tmp_path), StopAfter(0))
    assert (outcome.steps, outcome.stopped, stage.unchanged) == (0, True, True)
    assert [event["reason"] for event in stage.heard] == ["nothing changed"]
    assert same(outcome.result, mesh_of(stage.start))


def test_a_rolled_back_first_step_begins_its_round_again() -> None:
    stage = small_stage(small_config(), DiscTeacher(0.62))
    stage.load_tensors(stage.initial, 1.0)
    numbers = stage.step(1)
    assert float(numbers["pictures"]) == 1.0


def test_too_little_memory_is_one_clear_line() -> None:
    stage = small_stage(small_config(), DiscTeacher(0.62))
    with pytest.raises(OutOfMemoryError, match="refine.render_size"):
        stage.shrink()
    stage.encode_less = lambda views: 1
    stage.shrink()
    assert stage.heard[-1] == {"kind": "out_of_memory", "images": 1}


def test_rates_fall_in_each_round() -> None:
    stage = small_stage(small_config(steps=10), DiscTeacher(0.62))
    rates = []
    for i in (0, 5, 9, 10):
        stage.set_rates(i, 0.5)
        rates.append([group["lr"] for group in stage.optimizer.param_groups])
    assert rates[0] == rates[3] == [pytest.approx(1.0e-3), pytest.approx(1.5e-3)]
    assert rates[0][0] > rates[1][0] > rates[2][0] > 0.1e-3


def test_the_preview_is_the_mesh_over_nothing() -> None:
    stage = small_stage(small_config(), DiscTeacher(0.62))
    camera = Camera(*(torch.tensor([value]) for value in (0.0, 0.0, 2.9, 40.0)))
    render = stage.preview(camera, 16)
    assert render.rgb.shape == (256, 3) and 0.2 < float(render.opacity.mean()) < 0.5
    middle = render.rgb.reshape(16, 16, 3)[8, 8]
    torch.testing.assert_close(middle, torch.tensor([0.8, 0.2, 0.1]), atol=5e-3, rtol=0.0)


def test_which_figure_fell() -> None:
    assert fallen({"a": 1.0, "b": -2.0}, {"a": 0.985, "b": -2.03}) == ""
    assert fallen({"a": 1.0, "b": -2.0}, {"a": 1.5, "b": -2.05}).startswith("b fell")
    assert fallen({"a": 1.0}, {"a": float("nan")}).startswith("a fell")
    assert fallen({}, {}) == ""


def test_a_pyramid_adds_up_again() -> None:
    texture = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(0))
    levels = decompose(texture)
    assert [level.shape[-1] for level in levels] == [64, 128, 256]
    torch.testing.assert_close(compose(levels), texture, atol=1e-6, rtol=0.0)
    assert [level.shape[-1] for level in decompose(texture[:, :96, :96])] == [48, 96]


def test_welding_and_splitting_keep_the_mesh() -> None:
    start = ball_start()
    assert len(start.vertices) == 162, "of an icosphere: seams are welded"
    mesh = mesh_of(start, start.vertices, start.texture)
    again = start_of(mesh)
    assert torch.equal(start.vertices, again.vertices)
    assert torch.equal(start.faces, again.faces) and torch.equal(start.texture, again.texture)
    with pytest.raises(ValueError, match="UVs"):
        start_of(Mesh(mesh.vertices, mesh.faces))


def test_regularisers_by_hand() -> None:
    edges = torch.tensor([[0, 1], [1, 2]])
    values = torch.tensor([[0.0], [1.0], [4.0], [9.0]])
    # neighbours' mean minus own: 1, (0 + 4) / 2 - 1 = 1, -3, and nothing
    assert float(mesh_losses.roughness(values, edges)) == pytest.approx((1.0 + 1.0 + 9.0) / 4.0)
    texture = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])
    assert float(mesh_losses.total_variation(texture)) == pytest.approx(0.5 + 0.5)
    vertices = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [0.0, 1, 0], [0.0, 0, -1]])
    faces, sides = torch.tensor([[0, 1, 2], [0, 3, 1]]), torch.tensor([[0, 1], [0, -1]])
    fold = mesh_losses.normal_consistency(vertices, faces, sides)
    assert float(fold) == pytest.approx(1.0), "a right angle"
