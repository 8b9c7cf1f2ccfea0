"""Muon: momentum orthogonalised before the update, for the matrices inside a network.

(Jordan et al. 2024.) For a weight W [M, N] (a convolution's is flattened to [M, N * k * k]) with
gradient G and momentum m:

    m <- 0.95 m + 0.05 G,   W <- W - rate * 0.2 sqrt(max(M, N)) * orthogonal(0.05 G + 0.95 m)

`orthogonal` brings all singular values near 1 by five Newton-Schulz steps. The factor gives the
update the size of AdamW's, so that both use the same learning rate (Liu et al., arXiv 2502.16982,
equation 4). torch.optim.Muon supports two dimensions only and computes in bfloat16, which a CPU may
have to emulate; this one computes in float32 and shares the matrices among the processes of
`torchrun`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as processes
from torch import Tensor, nn

MOMENTUM = 0.95
ADAMW_SCALE = 0.2  # root mean square of AdamW's update
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of x, x^3 and x^5
STEPS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """[M, N] with the same singular vectors and every singular value near 1 (in [0.7, 1.2])."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(STEPS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Updates parameters of two dimensions or more.

    The gradients must be equal in all processes; each process orthogonalises its share.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            updates = [torch.zeros_like(p) for p in parameters]
            rank, world = (
                (processes.get_rank(), processes.get_world_size())
                if processes.is_initialized()
                else (0, 1)
            )
            for number, (parameter, update) in enumerate(zip(parameters, updates, strict=True)):
                state = self.state[parameter]
                momentum = state.setdefault("exp_avg", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1.0 - MOMENTUM)
                if number % world == rank:
                    ahead = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)
                    update.copy_(
                        (orthogonal(ahead) * ADAMW_SCALE * max(ahead.shape) ** 0.5).view_as(update)
                    )
            if world > 1 and parameters:
                vector = nn.utils.parameters_to_vector(updates)
                processes.all_reduce(vector)
                sizes = [p.numel() for p in parameters]
                updates = [
                    u.view_as(p) for u, p in zip(vector.split(sizes), parameters, strict=True)
                ]
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(
                    update, alpha=group["lr"]
                )
