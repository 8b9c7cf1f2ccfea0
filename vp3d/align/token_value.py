"""The value of partly masked strings by Monte-Carlo: a network fitted to the model's own roll-outs.

As for latents (value.py): every state of a plain draw is a sample of "what follows from it", with
the reward of its end (Li et al., arXiv 2408.08252, algorithm 3). On strings the exact value can be
summed (`tokens.Tables`), so the fit can be checked.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vp3d.align.svdd import Value
from vp3d.align.tokens import Conditional, StringReward, Strings, TokenModel, propose_tokens
from vp3d.align.value import Regressor, Rollouts


class StringValue(nn.Module):
    """A transformer on partly masked strings, with one number for each."""

    def __init__(self, letters: int, length: int, width: int = 64, layers: int = 2) -> None:
        """Random weights, from torch's global generator; arguments as for `TokenModel`."""
        super().__init__()
        self.body = TokenModel(letters, length, width, layers)
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """Values [R], in any unit, of strings `x` [R, L] int64 in [0, K], where K is the mask.

        `step` is not read: the number of masked letters says it.
        """
        features = self.body.features(x)
        pooled = torch.cat([features.mean(1), features.amax(1)], 1)
        found: Tensor = self.head(pooled).squeeze(1)
        return found


@torch.no_grad()
def roll_out_strings(
    model: Conditional, count: int, reward: StringReward, generator: torch.Generator
) -> Rollouts:
    """Draw `count` strings plainly and keep all states with masked letters on their way.

    The step of a state is its number of letters that are filled, 1 to L - 1; that of the empty
    string is left out, since no proposal is it.
    """
    state, seen = Strings.start(model, count), []
    for i in range(model.length):
        state = propose_tokens(state, i, 1, generator)
        seen.append(state.x)
    found = reward(state.x).float()
    step = torch.arange(1, model.length).repeat_interleave(count)
    return Rollouts(torch.cat(seen[:-1]), step, found.repeat(model.length - 1))


def monte_carlo(regressor: Regressor, reward: StringReward) -> Value[Strings]:
    """The value of states by a fitted regressor; a complete string has its reward."""

    def value(state: Strings, i: int) -> Tensor:
        if not bool((state.x == state.model.letters).any()):
            return reward(state.x).double()
        step = torch.full((len(state),), i + 1)
        return regressor(state.x, step).double()

    return value
