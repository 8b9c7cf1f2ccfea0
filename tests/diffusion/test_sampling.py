"""The sampling loop against a naive second version: values, truncated gradient, progress."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vp3d.diffusion.sampling import ddim_step, ddim_timesteps, noise_levels, sample
from vp3d.errors import UserError

STEPS = 5
LEVELS = torch.tensor([0.02, 0.1, 0.35, 0.7, 0.95, 1.0], dtype=torch.float64)


class Network(nn.Module):
    """A denoiser of two layers whose output depends on the step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = (nn.Conv2d(2, 2, 3, padding=1).double() for _ in range(2))
        self.calls: list[int] = []

    def forward(self, x: Tensor, i: int) -> Tensor:
        self.calls.append(i)
        return self.last(torch.tanh(self.first(x) + i))


def start(batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, 4, 4, generator=generator, dtype=torch.float64)


def naive(
    network: Network, x: Tensor, eta: float, generator: torch.Generator, detached: int = 0
) -> Tensor:
    """DDIM by Song et al., equation 12, sample by sample; the first `detached` steps detached."""
    for i in range(STEPS):
        a, b = float(LEVELS[i]), float(LEVELS[i + 1])
        e = network(x, i)
        s = eta * ((1 - b) / (1 - a)) ** 0.5 * (1 - a / b) ** 0.5
        x = b**0.5 * (x - (1 - a) ** 0.5 * e) / a**0.5 + (1 - b - s * s) ** 0.5 * e
        if eta and i + 1 < STEPS:
            x = x + s * torch.randn(x.shape, generator=generator).double()
        if i < detached:
            x = x.detach()
    return x


def gradients(network: Network, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(x.square().sum(), list(network.parameters())))


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_sampling_agrees_with_a_naive_loop(eta: float) -> None:
    network = Network()
    found = sample(
        network, start(), LEVELS, eta=eta, generator=torch.Generator().manual_seed(2)
    )  # fmt: skip
    expected = naive(network, start(), eta, torch.Generator().manual_seed(2))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


def test_levels_are_those_of_the_timesteps_and_then_one() -> None:
    table = torch.linspace(0.99, 0.01, 10)
    levels = noise_levels(table, torch.tensor([9, 4, 0]))
    assert levels.tolist() == pytest.approx([0.01, float(table[4]), 0.99, 1.0])


def test_a_stochastic_step_keeps_the_variance() -> None:
    """Of x0 = 0 and true noise, the next state has the variance of its level, for every eta."""
    generator = torch.Generator().manual_seed(0)
    e, z = torch.randn(2, 1, 1, 200, 200, generator=generator)
    here, following = torch.tensor([0.2]), torch.tensor([0.6])
    for eta in (0.0, 0.5, 1.0):
        x = ddim_step(0.8**0.5 * e, e, here, following, z, eta)
        assert float(x.var()) == pytest.approx(0.4, rel=0.02)
    with pytest.raises(ValueError, match="noise"):
        ddim_step(e, e, here, following, None, 1.0)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("grad_steps", [1, 3, STEPS])
def test_truncated_gradient_is_that_of_a_loop_with_detached_first_steps(
    grad_steps: int, checkpointed: bool
) -> None:
    network = Network()
    found = sample(network, start(), LEVELS, grad_steps=grad_steps, checkpointed=checkpointed)
    expected = naive(network, start(), 0.0, torch.Generator(), detached=STEPS - grad_steps)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    for ours, theirs in zip(gradients(network, found), gradients(network, expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-8)


def test_truncated_gradient_differs_from_the_full_one_and_zero_steps_have_no_graph() -> None:
    network = Network()
    full, short = (
        gradients(network, sample(network, start(), LEVELS, grad_steps=k)) for k in (None, 2)
    )
    assert not torch.allclose(full[0], short[0])
    x = start().requires_grad_()
    assert not sample(network, x, LEVELS, grad_steps=0).requires_grad
    sample(network, x, LEVELS).sum().backward()
    assert x.grad is not None and float(x.grad.abs().sum()) > 0
    with torch.no_grad():
        assert not sample(network, start(), LEVELS, checkpointed=True).requires_grad


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_checkpointing_changes_neither_value_nor_gradient(eta: float) -> None:
    found = []
    for checkpointed in (False, True):
        network = Network()
        generator = torch.Generator().manual_seed(4)
        x = sample(
            network, start(), LEVELS, checkpointed=checkpointed, eta=eta, generator=generator
        )
        found.append([x.detach(), *gradients(network, x)])
        repeated = list(reversed(range(STEPS))) if checkpointed else []
        assert network.calls == [*range(STEPS), *repeated]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_checkpointing_saves_the_activations() -> None:
    def saved(checkpointed: bool) -> int:
        count = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        network = Network()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            sample(network, start(), LEVELS, checkpointed=checkpointed)
        return count

    assert saved(True) < 0.7 * saved(False)


def test_on_step_is_called_after_each_step() -> None:
    network = Network()
    seen: list[tuple[int, int, int]] = []
    sample(
        network,
        start(),
        LEVELS,
        on_step=lambda done, steps: seen.append((done, steps, len(network.calls))),
    )
    assert seen == [(i, STEPS, i) for i in range(1, STEPS + 1)]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"grad_steps": -1}, "grad_steps"),
        ({"grad_steps": STEPS + 1}, "grad_steps"),
        ({"eta": 0.5}, "generator"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(
    options: dict[str, int | float], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        sample(Network(), start(), LEVELS, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, [9]),
        (3, [9, 6, 2]),  # 10, 6.67, 3.33, rounded, less 1
        (5, [9, 7, 5, 3, 1]),
        (10, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
    ],
)
def test_timesteps_are_spaced_from_the_last_of_training(steps: int, expected: list[int]) -> None:
    assert ddim_timesteps(10, steps).tolist() == expected


@pytest.mark.parametrize("steps", [0, 11])
def test_more_steps_than_the_training_had_are_refused(steps: int) -> None:
    with pytest.raises(UserError, match="use between 1 and 10"):
        ddim_timesteps(10, steps)
