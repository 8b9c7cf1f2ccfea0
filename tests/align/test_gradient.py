"""The checkpointed draw: its gradient is that of the same steps written out without checkpoints."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.tiny_models import tiny_prior_config
from vp3d.align.alignprop import draw
from vp3d.config.schema import PriorConfig
from vp3d.diffusion import lora
from vp3d.diffusion.load import load_prior


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PriorConfig:
    return tiny_prior_config(tmp_path_factory.mktemp("gradient"), ip_adapter=False)


@pytest.mark.parametrize("live", [1, 2, 4])
@pytest.mark.parametrize("stop", [False, True])
def test_the_gradient_equals_that_of_a_loop_written_out(
    config: PriorConfig, live: int, stop: bool
) -> None:
    prior = load_prior(config)
    g = torch.Generator().manual_seed(0)
    found = lora.attach({"unet": prior.unet}, "own", 2, g)
    with torch.no_grad():
        for v in found.values():
            v.copy_(0.1 * torch.randn(v.shape, generator=g))
    d = prior.drawing(["a", "b"], "", 4, 3.0)
    noise = prior.noise(2, torch.Generator().manual_seed(5))
    probe = torch.randn(noise.shape, generator=g)
    (draw(d, noise, live, input_gradient=not stop) * probe).sum().backward()
    fast = {k: v.grad.clone() for k, v in found.items()}
    for v in found.values():
        v.grad = None
    x = noise
    for i in range(4):
        a, b = d.levels[i], d.levels[i + 1]
        e = d(x.detach() if stop else x, i)
        if i < 4 - live:
            e = e.detach()
        x0 = (x - (1 - a).sqrt() * e) / a.sqrt()
        x = b.sqrt() * x0 + (1 - b).sqrt() * e
    (x * probe).sum().backward()
    for k, v in found.items():
        torch.testing.assert_close(
            fast[k], v.grad, rtol=2e-4, atol=1e-5 * float(v.grad.abs().max()) + 1e-7
        )
