"""The simulation of many GPUs: by hand without kills, conservation and the best interval with."""

from __future__ import annotations

import math

import pytest

from benchmarks.scaling import HOUR, Fleet, Run, Simulation, best_interval, main

RUN = Run(draw_s=10.0, steps=100, step_s=1.0, every=40, checkpoint_s=2.0, export_s=5.0)


def test_without_kills_the_times_are_those_by_hand() -> None:
    # 10 + 100 + 2 checkpoints (after 40 and 80) x 2 + 5 = 119 s; 7 assets on 3 GPUs: 3 rounds.
    spent = Simulation(7, RUN, Fleet(3, math.inf, 60.0, load_s=20.0)).run()
    assert spent.makespan == pytest.approx(20.0 + 3 * 119.0)
    assert spent.useful == pytest.approx(7 * 115.0) and spent.checkpoints == pytest.approx(28.0)
    assert spent.loading == pytest.approx(60.0) and spent.idle == pytest.approx(2 * 119.0)
    assert (spent.lost, spent.kills, spent.finished) == (0.0, 0, 7)


@pytest.mark.parametrize(
    ("drawn", "done", "spent", "kept"),
    [
        (False, 0, 9.9, (False, 0)),
        (False, 0, 10.0, (True, 0)),
        (False, 0, 51.9, (True, 0)),
        (False, 0, 52.0, (True, 40)),
        (False, 0, 118.0, (True, 80)),
        (True, 40, 41.9, (True, 40)),
        (True, 40, 42.0, (True, 80)),
        (True, 80, 24.0, (True, 80)),
    ],
)
def test_what_a_kill_leaves(drawn: bool, done: int, spent: float, kept: tuple[bool, int]) -> None:
    assert RUN.kept(drawn, done, spent) == kept


@pytest.mark.parametrize("every", [0, 7, 40, 100])
@pytest.mark.parametrize("mean", [60.0, 300.0, 3000.0])
def test_every_asset_is_finished_and_every_second_is_counted_once(every: int, mean: float) -> None:
    run = Run(10.0, 100, 1.0, every, 2.0, 5.0)
    fleet = Fleet(4, mean, 30.0, 20.0)
    simulation = Simulation(40, run, fleet, seed=3)
    spent = simulation.run()
    assert spent.finished == 40 and not simulation.waiting
    assert spent.useful == pytest.approx(40 * 115.0)
    written = 40 * run.checkpoints(0) * 2.0
    assert spent.checkpoints == pytest.approx(written)
    busy = spent.up()
    assert busy <= 4 * spent.makespan + 1e-6
    assert busy >= 4 * spent.makespan - (spent.kills * 30.0) - 1e-6
    assert Simulation(40, run, fleet, seed=3).run() == spent


def test_the_loss_is_least_near_youngs_interval() -> None:
    fleet = Fleet(16, 0.5 * HOUR, 60.0, 10.0)

    def waste(every: int) -> float:
        run = Run(10.0, 4000, 0.5, every, 5.0, 5.0)
        spent = Simulation(400, run, fleet).run()
        return (spent.lost + spent.checkpoints) / spent.useful

    best = round(best_interval(Run(10.0, 4000, 0.5, 1, 5.0, 5.0), fleet.mean_up_s))
    assert best == round(math.sqrt(2 * 5.0 * 1800.0) / 0.5)
    assert waste(best) < min(waste(best // 6), waste(best * 6), waste(0))


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--assets", "50", "--gpus", "4", "--mean-up", "2", "--every", "0", "100"])
    out = capsys.readouterr().out
    assert "50 assets on 4 GPUs" in out and out.count("never") == 2 and "Young, 2 h" in out
