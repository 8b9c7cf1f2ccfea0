"""The world of strings: four letters that follow a Markov chain, and rewards on motifs.

It is the smallest world in which the law of a steered diffusion model can be summed
(`align/tokens.py`). Letters are 0 to 3, written A, C, G and T.
"""

from __future__ import annotations

import torch
from torch import Tensor

LETTERS = "ACGT"
CHAIN_SEED = 7


def transitions(seed: int = CHAIN_SEED) -> Tensor:
    """The probabilities [4, 4] float64 of the next letter; each row adds up to 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.2 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    return torch.softmax(logits, dim=1)


def draw_chain(count: int, length: int, generator: torch.Generator) -> Tensor:
    """`count` strings [count, length] int64 of the chain; the first letter is uniform."""
    table = transitions()
    x = torch.empty(count, length, dtype=torch.long)
    x[:, 0] = torch.randint(4, (count,), generator=generator)
    for place in range(1, length):
        x[:, place] = torch.multinomial(table[x[:, place - 1]], 1, generator=generator).squeeze(1)
    return x


def encode(text: str) -> Tensor:
    """Letters as numbers [L] int64.

    Raises:
        ValueError: if there is another letter than A, C, G and T.
    """
    return torch.tensor([LETTERS.index(letter) for letter in text])


def best_match(x: Tensor, motif: str) -> Tensor:
    """The largest number of letters [R] of `motif` that strings `x` [R, L] have in one place."""
    return _matches(x, motif).amax(1)


def hits(x: Tensor, motif: str) -> Tensor:
    """The number [R] of places of strings `x` [R, L] that have the complete motif."""
    return (_matches(x, motif) == len(motif)).sum(1).double()


def gc_share(x: Tensor) -> Tensor:
    """The share [R] of the letters C and G of strings `x` [R, L]."""
    return ((x == 1) | (x == 2)).double().mean(1)


def _matches(x: Tensor, motif: str) -> Tensor:
    """Equal letters [R, L - len(motif) + 1] float64 of the motif in each place."""
    return (x.unfold(1, len(motif), 1) == encode(motif)).sum(-1).double()
