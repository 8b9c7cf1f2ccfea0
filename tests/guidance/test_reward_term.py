"""Hinge, gate and window of a reward, and that the encoder rests when the reward does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vp3d.config.schema import RewardConfig, ViewGate
from vp3d.guidance.reward_term import Reward, is_active, reward_loss, reward_term, reward_terms
from vp3d.types import Camera

AZIMUTH = torch.tensor([0.0, 90.0, 180.0, 270.0])
FRONT_HALF = ViewGate(center_deg=0, full_deg=80, zero_deg=100, floor=0.0)


class Recorder:
    """A reward with known values, mean brightness, which notes what it was shown."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, rgb: Tensor, target: Tensor) -> Tensor:
        self.calls.append((len(rgb), len(target)))
        return rgb.mean(dim=(1, 2, 3)) + 0 * target.sum(dim=1)


def views() -> Tensor:
    levels = torch.tensor([0.1, 0.2, 0.3, 0.4])
    return levels[:, None, None, None].expand(4, 3, 8, 8).clone().requires_grad_()


def test_window_is_closed_and_weight_zero_is_off() -> None:
    config = RewardConfig(weight=0.1, begin=0.25, finish=0.75)
    assert all(is_active(config, p) for p in (0.25, 0.5, 0.75))
    assert not any(is_active(config, p) for p in (0.0, 0.24, 0.76, 1.0))
    assert not is_active(RewardConfig(weight=0.0), 0.5)


def test_hand_values_with_hinge_and_gate() -> None:
    config = RewardConfig(weight=3.0, hinge=0.5)
    reward, gate = torch.tensor([0.1, 0.7, 0.4]), torch.tensor([1.0, 1.0, 0.5])
    expected = (1.0 * 0.4 + 1.0 * 0.0 + 0.5 * 0.1) / 3
    assert float(reward_loss(reward, config, gate, 0.5)) == pytest.approx(expected)


def test_hinge_stops_the_push() -> None:
    reward = torch.tensor([0.1, 0.7], requires_grad=True)
    loss = reward_loss(reward, RewardConfig(weight=1.0, hinge=0.5), torch.ones(2), 0.5)
    (gradient,) = torch.autograd.grad(loss, reward)
    assert gradient.tolist() == [-0.5, 0.0]


def test_without_hinge_the_loss_is_the_negative_mean() -> None:
    reward = torch.tensor([0.1, 0.7, 2.0], requires_grad=True)
    loss = reward_loss(reward, RewardConfig(weight=1.0), torch.tensor([1.0, 0.5, 1.0]), 0.5)
    assert float(loss.detach()) == pytest.approx(-(0.1 + 0.35 + 2.0) / 3)
    (gradient,) = torch.autograd.grad(loss, reward)
    torch.testing.assert_close(gradient, -torch.tensor([1.0, 0.5, 1.0]) / 3)


def test_a_hinge_of_a_million_is_none_and_one_below_it_is_a_hinge() -> None:
    reward, gate = torch.tensor([0.25, 0.5]), torch.ones(2)
    for hinge, expected in ((1.0e6, -0.375), (0.9e6, 0.9e6 - 0.375)):
        loss = reward_loss(reward, RewardConfig(weight=1.0, hinge=hinge), gate, 0.5)
        assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_outside_its_window_it_is_exactly_zero() -> None:
    config = RewardConfig(weight=1.0, begin=0.5)
    assert float(reward_loss(torch.tensor([0.3]), config, torch.ones(1), 0.4)) == 0.0


def test_term_agrees_with_the_loss_over_all_views() -> None:
    for gate in (ViewGate(), FRONT_HALF, ViewGate(90, 30, 170, 0.2)):
        config, rgb, reward = RewardConfig(weight=1.0, hinge=0.35, gate=gate), views(), Recorder()
        loss, value = reward_term(reward, rgb, torch.zeros(4, 5), AZIMUTH, config, 0.5)
        weights = torch.tensor([naive_gate(gate, a) for a in AZIMUTH.tolist()])
        all_views = reward_loss(Recorder()(rgb, torch.zeros(4, 5)), config, weights, 0.5)
        torch.testing.assert_close(loss, all_views)
        ours, theirs = (
            torch.autograd.grad(x, rgb, retain_graph=True)[0] for x in (loss, all_views)
        )
        torch.testing.assert_close(ours, theirs)
        assert loss.requires_grad and value is not None and not value.requires_grad
        open_views = torch.tensor([0.1, 0.2, 0.3, 0.4])[weights > 0]
        assert float(value) == pytest.approx(float(open_views.mean()))


def naive_gate(gate: ViewGate, azimuth: float) -> float:
    turn = min(abs(azimuth - gate.center_deg + k) for k in (-360, 0, 360))
    share = 1 - (turn - gate.full_deg) / max(gate.zero_deg - gate.full_deg, 1e-9)
    return gate.floor + (1 - gate.floor) * min(1.0, max(0.0, share))


def test_only_open_views_are_encoded() -> None:
    reward = Recorder()
    config = RewardConfig(weight=1.0, gate=FRONT_HALF)
    reward_term(reward, views(), torch.zeros(4, 5), AZIMUTH, config, 0.5)
    reward_term(reward, views(), torch.zeros(1, 5), AZIMUTH, config, 0.5)
    assert reward.calls == [(3, 3), (3, 1)]


@pytest.mark.parametrize(
    ("config", "progress"),
    [
        (RewardConfig(weight=0.0), 0.5),
        (RewardConfig(weight=1.0, begin=0.6), 0.5),
        (RewardConfig(weight=1.0, finish=0.4), 0.5),
        (RewardConfig(weight=1.0, gate=ViewGate(45, 0, 10, 0.0)), 0.5),
    ],
)
def test_the_encoder_rests(config: RewardConfig, progress: float) -> None:
    reward = Recorder()
    loss, value = reward_term(reward, views(), torch.zeros(1, 5), AZIMUTH, config, progress)
    assert float(loss) == 0.0 and value is None and reward.calls == []


def test_each_reward_has_its_loss_and_its_value_and_outside_its_window_the_value_alone() -> None:
    """A view in grey is brighter over white: each reward sees its own background."""
    camera = Camera(AZIMUTH, torch.zeros(4), torch.full((4,), 3.0), torch.full((4,), 40.0))
    shades, seen = views(), []

    def shown(background: float | None) -> Tensor:
        seen.append(background)
        return shades + (background or 0.0)

    rewards = {
        name: Reward(
            Recorder(), lambda camera: torch.zeros(len(camera.azimuth_deg), 1), config, grey
        )
        for name, config, grey in (
            ("now", RewardConfig(weight=2.0), None),
            ("front", RewardConfig(weight=2.0, gate=FRONT_HALF), 0.5),
            ("later", RewardConfig(weight=2.0, begin=0.5), 0.5),
        )
    }
    losses, values = reward_terms(rewards, shown, camera, 0.25)
    assert seen == [None, 0.5, 0.5]
    assert {name: round(loss.item(), 5) for name, loss in losses.items()} == {
        "now": -0.25,
        "front": round(-(0.6 + 0.5 * 0.7 + 0.5 * 0.9) / 4, 5),
        "later": 0.0,
    }
    assert {name: round(float(value), 5) for name, value in values.items()} == {
        "reward_now": 0.25,
        "reward_front": round((0.6 + 0.7 + 0.9) / 3, 5),
        "reward_later": 0.75,
    }
    assert losses["now"].requires_grad and not values["reward_later"].requires_grad
