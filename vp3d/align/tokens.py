"""Masked diffusion on strings, whose law can be summed: where SVDD is checked exactly.

A string has L letters of K; the letter K is the mask. The forward process masks each letter with
the probability t. The network is trained by the cross-entropy of the masked letters, weighted by
1 / t (Sahoo et al., arXiv 2406.07524, equation 10). A draw starts with all letters masked and fills
one letter a step: the place is uniform among the masked ones, the letter is drawn from the network.

For short strings all (K + 1)^L partly masked strings are listed (`Tables`), so the probability of
every string, the target p(x) exp(r(x) / alpha) / Z, and the exact values are sums, for the model as
it is: nothing is assumed of its training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vp3d.align.svdd import Value

StringReward = Callable[[Tensor], Tensor]  # strings [R, L] int64 in [0, K) -> [R]


class TokenModel(nn.Module):
    """A transformer over L letters: logits of every letter, given those that are not masked."""

    def __init__(self, letters: int, length: int, width: int = 64, layers: int = 2) -> None:
        """Random weights, from torch's global generator.

        Args:
            letters: K.
            length: L.
            width: Channels.
            layers: Transformer layers.
        """
        super().__init__()
        self.letters, self.length = letters, length
        self.token = nn.Embedding(letters + 1, width)
        self.place = nn.Parameter(0.1 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, letters)

    def features(self, x: Tensor) -> Tensor:
        """Features [R, L, width] of strings `x` [R, L] int64 in [0, K], where K is the mask."""
        found: Tensor = self.body(self.token(x) + self.place)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits [R, L, K] of the letters of `x` [R, L] int64 in [0, K]."""
        logits: Tensor = self.head(self.features(x))
        return logits


class Conditional(Protocol):
    """Anything that gives logits of masked letters: a `TokenModel`, or an exact law."""

    @property
    def letters(self) -> int:
        """K."""
        ...

    @property
    def length(self) -> int:
        """L."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [R, L, K] of `x` [R, L] int64 in [0, K]."""
        ...


def masked_loss(model: Conditional, x: Tensor, generator: torch.Generator) -> Tensor:
    """The training loss, a scalar: cross-entropy of masked letters, weighted by 1 / t.

    Args:
        model: Gives the logits.
        x: Strings [B, L] int64 in [0, K).
        generator: Draws t and the masks.
    """
    # stratified over the batch, against the variance of 1 / t
    first = torch.rand(1, generator=generator)
    t = ((first + torch.arange(len(x)) / len(x)) % 1.0).clamp_min(1.0 / x.shape[1])[:, None]
    masked = torch.rand(x.shape, generator=generator) < t
    logits = model(torch.where(masked, model.letters, x))
    each = F.cross_entropy(logits.flatten(0, 1), x.flatten(), reduction="none").view_as(x)
    return (each * masked / t).sum() / x.numel()


def train_tokens(
    model: TokenModel,
    strings: Callable[[int, torch.Generator], Tensor],
    steps: int,
    generator: torch.Generator,
    batch: int = 128,
    lr: float = 3e-3,
) -> list[float]:
    """Train a model in place, by AdamW with a cosine.

    Args:
        model: The model.
        strings: `strings(count, generator)` draws training strings [count, L] int64.
        steps: Updates.
        generator: Draws strings, masks and times.
        batch: Strings an update.
        lr: Peak learning rate.

    Returns:
        The loss of each update.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    losses = []
    for _ in range(steps):
        loss = masked_loss(model, strings(batch, generator), generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


@dataclass
class Strings:
    """R partly masked strings [R, L] int64 in [0, K], a `State` of `svdd`.

    Attributes:
        model: Gives the law of the masked letters.
        x: The strings.
        probabilities: Of their letters [R, L, K] float64, once computed.
    """

    model: Conditional
    x: Tensor
    probabilities: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: Tensor) -> Strings:
        """The rows `index` [R] int64, with their probabilities if they were computed."""
        known = None if self.probabilities is None else self.probabilities[index]
        return Strings(self.model, self.x[index], known)

    def law(self) -> Tensor:
        """The probabilities [R, L, K] float64 of each letter, computed at the first call.

        They are float64: noise of float32 lowers the temperature of a categorical draw
        (Zheng et al., arXiv 2409.02908).
        """
        if self.probabilities is None:
            with torch.no_grad():
                self.probabilities = torch.softmax(self.model(self.x).double(), dim=-1)
        return self.probabilities

    @classmethod
    def start(cls, model: Conditional, count: int) -> Strings:
        """`count` strings with all letters masked."""
        return cls(model, torch.full((count, model.length), model.letters))


def propose_tokens(state: Strings, i: int, copies: int, generator: torch.Generator) -> Strings:
    """Fill one masked letter of each row: a `Propose` of `svdd`, for L steps.

    Each proposal draws its own place, uniform among the masked ones, and its own letter.
    """
    x = state.x.repeat_interleave(copies, 0)
    rows = torch.arange(len(x))
    masked = (x == state.model.letters).double()
    place = torch.multinomial(masked, 1, generator=generator).squeeze(1)
    law = state.law().repeat_interleave(copies, 0)[rows, place]
    x[rows, place] = torch.multinomial(law, 1, generator=generator).squeeze(1)
    return Strings(state.model, x)


def fill_best(state: Strings) -> Tensor:
    """The strings [R, L], with the likeliest letter in each masked place, all at once."""
    masked = state.x == state.model.letters
    return torch.where(masked, state.law().argmax(-1), state.x)


def fill_drawn(state: Strings, generator: torch.Generator) -> Tensor:
    """The strings [R, L], with a drawn letter in each masked place, all at once."""
    masked = state.x == state.model.letters
    drawn = torch.multinomial(state.law().flatten(0, 1), 1, generator=generator)
    return torch.where(masked, drawn.view_as(state.x), state.x)


def posterior_mean(reward: StringReward) -> Value[Strings]:
    """The reward of the likeliest letters in the masked places. It is biased: too optimistic."""

    def value(state: Strings, i: int) -> Tensor:
        return reward(fill_best(state)).double()

    return value


def mean_of_fills(reward: StringReward, n: int, generator: torch.Generator) -> Value[Strings]:
    """The mean reward of `n` fills, in which the masked letters are drawn independently."""

    def value(state: Strings, i: int) -> Tensor:
        return (
            torch.stack([reward(fill_drawn(state, generator)) for _ in range(n)]).double().mean(0)
        )

    return value


def draw_strings(model: Conditional, count: int, generator: torch.Generator) -> Tensor:
    """`count` strings [count, L] as the model draws them."""
    state = Strings.start(model, count)
    for i in range(model.length):
        state = propose_tokens(state, i, 1, generator)
    return state.x


@dataclass(frozen=True)
class Tables:
    """Everything that can be summed for strings of up to about eight letters.

    Partly masked strings are numbered in base K + 1, the first letter counting most.

    Attributes:
        letters: K.
        strings: All partly masked strings [(K + 1)^L, L] int64.
        law: Probabilities of their letters [(K + 1)^L, L, K] float64.
        complete: The numbers of the K^L strings without mask [K^L] int64.
    """

    letters: int
    strings: Tensor
    law: Tensor
    complete: Tensor

    @classmethod
    def of(cls, model: Conditional, chunk: int = 4096) -> Tables:
        """List the strings and ask the model for each of them."""
        letters, length = model.letters, model.length
        values = torch.arange(letters + 1)
        strings = torch.cartesian_prod(*[values] * length).reshape(-1, length)
        with torch.no_grad():
            logits = torch.cat([model(part).double() for part in strings.split(chunk)])
        complete = torch.nonzero((strings < letters).all(1)).squeeze(1)
        return cls(letters, strings, torch.softmax(logits, -1), complete)

    @property
    def length(self) -> int:
        """L."""
        return self.strings.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [R, L, K] of `x` [R, L], looked up: the model as a table, many times faster."""
        return self.law[self.number(x)].log()

    def number(self, x: Tensor) -> Tensor:
        """The numbers [R] int64 of strings `x` [R, L]."""
        length = x.shape[1]
        powers = (self.letters + 1) ** torch.arange(length - 1, -1, -1)
        return (x * powers).sum(1)

    def _fills(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """For the N strings with `count` masked letters: their numbers [N], the numbers of the
        strings with one more letter [N, count, K], and the probabilities of those [N, count, K].
        """
        masked = self.strings == self.letters
        own = torch.nonzero(masked.sum(1) == count).squeeze(1)
        places = torch.nonzero(masked[own])[:, 1].view(len(own), count)
        powers = (self.letters + 1) ** (self.length - 1 - places)
        letters = torch.arange(self.letters)
        following = own[:, None, None] + (letters - self.letters) * powers[:, :, None]
        law = self.law[own].gather(1, places[:, :, None].expand(-1, -1, self.letters))
        return own, following, law / count

    def expectation(self, reward: Tensor) -> Tensor:
        """E[f(x_S) | x] [(K + 1)^L] float64 of every partly masked string x.

        Args:
            reward: f of the complete strings [K^L].
        """
        found = torch.zeros(len(self.strings), dtype=torch.float64)
        found[self.complete] = reward.double()
        for count in range(1, self.length + 1):
            own, following, law = self._fills(count)
            found[own] = (law * found[following]).sum((1, 2))
        return found

    def probabilities(self) -> Tensor:
        """The probability [K^L] float64 with which the model draws each complete string."""
        found = torch.zeros(len(self.strings), dtype=torch.float64)
        found[-1] = 1.0  # all letters masked
        for count in range(self.length, 0, -1):
            own, following, law = self._fills(count)
            mass = found[own, None, None] * law
            found.index_add_(0, following.flatten(), mass.flatten())
        return found[self.complete]

    def soft_value(self, reward: Tensor, alpha: float) -> Tensor:
        """alpha log E[exp(r / alpha) | x] [(K + 1)^L] float64; `reward` [K^L], `alpha` above 0."""
        most = reward.double().max()
        inside = self.expectation(torch.exp((reward.double() - most) / alpha))
        return most + alpha * inside.clamp_min(1e-300).log()

    def target(self, reward: Tensor, alpha: float) -> Tensor:
        """p(x) exp(r(x) / alpha) / Z [K^L] float64; `reward` [K^L], `alpha` above 0."""
        scaled = self.probabilities().log() + reward.double() / alpha
        return torch.softmax(scaled, 0)

    def looked_up(self, table: Tensor) -> Value[Strings]:
        """The value of a state by a table [(K + 1)^L], such as `soft_value` or `expectation`."""

        def value(state: Strings, i: int) -> Tensor:
            return table[self.number(state.x)]

        return value


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half of the summed distance of two laws [N], in [0, 1]."""
    return 0.5 * float((p.double() - q.double()).abs().sum())


def law_of_rewards(rewards: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    """The probability [N] of each of the `levels` [N] of the reward.

    Args:
        rewards: Those of some strings [R], each one of the levels.
        weights: Probability of each string [R].
        levels: The different rewards, rising.
    """
    place = torch.searchsorted(levels, rewards)
    found = torch.zeros(len(levels), dtype=torch.float64)
    return found.index_add_(0, place, weights.double())
