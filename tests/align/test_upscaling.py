"""Aligning an upscaler: its losses and the truncated draw, on tiny networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.upscale.test_diffusion import tiny_pipeline
from vp3d.align.hallucination import EPSILON, distance
from vp3d.align.learner import Law
from vp3d.align.upscaling import (
    feed_forward,
    score_loss,
    sharpness,
    squared_error,
    through_the_draw,
)
from vp3d.metrics.hallucination_towers import embedded_features
from vp3d.upscale.diffusion import DiffusionUpscaler, DrawSettings
from vp3d.upscale.load import load_diffusion_upscaler


class Repeats(nn.Module):
    """Repeats every pixel 4 x 4 times, times a weight."""

    context = 0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, rgb: Tensor) -> Tensor:
        return self.weight * rgb.repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> DiffusionUpscaler:
    folder = tmp_path_factory.mktemp("upscaler")
    tiny_pipeline().save_pretrained(folder, safe_serialization=True)
    found = load_diffusion_upscaler(Path(folder), DrawSettings(3))
    found.parts.unet.requires_grad_(True)
    return found


def gradient(upscaler: DiffusionUpscaler, law: Law, seed: int = 0) -> Tensor:
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    large = through_the_draw(upscaler, law)(small, torch.Generator().manual_seed(seed))
    assert large.shape == (1, 3, 32, 32)
    upscaler.parts.unet.zero_grad()
    squared_error(large, torch.full_like(large, 0.5)).backward()
    gradient = upscaler.parts.unet.conv_in.weight.grad
    assert gradient is not None
    return gradient.clone()


def test_sharpness_by_hand() -> None:
    truth = torch.zeros(2, 3, 8, 8)
    truth[..., 4:] = 1.0
    soft = truth.clone()
    soft[0, ..., 4] = 0.5  # the step of 1 becomes two of a half: half of the energy
    torch.testing.assert_close(sharpness(soft, truth), torch.tensor([0.5, 1.0]))


def test_the_loss_of_the_score_is_the_smooth_proxy_and_has_a_gradient() -> None:
    features = embedded_features()
    network = Repeats()
    small = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    truth = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    large = feed_forward(network)(small, torch.Generator())
    loss = score_loss(features)(large, truth)
    with torch.no_grad():
        found = distance(network(small), truth, features)
    by_hand = (torch.log(found.smooth + EPSILON) + torch.log(found.whole + EPSILON)).mean()
    torch.testing.assert_close(loss.detach(), by_hand)
    loss.backward()
    assert network.weight.grad is not None and network.weight.grad.isfinite()
    assert bool((found.smooth <= found.local).all())


def test_what_a_network_gives_is_clipped() -> None:
    network = Repeats()
    network.weight.data.fill_(3.0)
    large = feed_forward(network)(torch.full((1, 3, 4, 4), 0.5), torch.Generator())
    assert large.max() == 1.0


@pytest.mark.filterwarnings("ignore:The configuration file of the vae")
def test_the_gradient_flows_through_the_last_steps_of_the_draw(
    upscaler: DiffusionUpscaler,
) -> None:
    one, two, all_steps = (gradient(upscaler, Law("fixed", k)) for k in (1, 2, 9))
    assert one.abs().max() > 0.0
    assert not torch.allclose(one, two) and not torch.allclose(two, all_steps)
    assert torch.equal(one, gradient(upscaler, Law("fixed", 1)))  # the generator alone draws
    assert not torch.allclose(one, gradient(upscaler, Law("fixed", 1), seed=1))


@pytest.mark.filterwarnings("ignore:The configuration file of the vae")
def test_all_steps_of_the_draw_have_the_gradient_of_the_plain_graph(
    upscaler: DiffusionUpscaler,
) -> None:
    """Checkpointing recomputes each step; finite differences know nothing of it."""
    weight = upscaler.parts.unet.conv_out.bias
    found = gradient(upscaler, Law("fixed", 3))
    assert found.isfinite().all()
    slope = float(weight.grad[0])
    values = []
    for step in (1e-2, -1e-2):
        with torch.no_grad():
            weight[0] += step
            small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
            law = Law("fixed", 3)
            large = through_the_draw(upscaler, law)(small, torch.Generator().manual_seed(0))
            values.append(float((large.double() - 0.5).square().mean()))
            weight[0] -= step
    assert slope == pytest.approx((values[0] - values[1]) / 2e-2, rel=0.05)
