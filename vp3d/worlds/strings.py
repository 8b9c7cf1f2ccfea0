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


def tilted_hits(length: int, motif: str, alpha: float) -> float:
    """The mean number of hits of the target p(x) exp(hits(x) / alpha) / Z, for the chain's p.

    It is summed exactly over all strings, by transfer matrices on the pairs of a letter and of how
    much of the motif the string ends with (the automaton of Knuth, Morris and Pratt).

    Args:
        length: L, at least 1.
        motif: Letters of `LETTERS`.
        alpha: Temperature, above 0; infinity for the chain itself.
    """
    table, goal = transitions(), len(motif)
    following = torch.tensor(
        [
            [_longest(motif[:known] + letter, motif) for letter in LETTERS]
            for known in range(goal + 1)
        ]
    )
    boost = float(torch.exp(torch.tensor(1.0 / alpha, dtype=torch.float64)))
    mass = torch.zeros(4, goal + 1, dtype=torch.float64)  # of strings, by last letter and match
    total = torch.zeros_like(mass)  # of their hits
    arriving = torch.full((4,), 0.25, dtype=torch.float64)
    for letter in range(4):
        known = int(following[0, letter])
        weight = arriving[letter] * (boost if known == goal else 1.0)
        mass[letter, known] += weight
        total[letter, known] += weight * (known == goal)
    for _ in range(length - 1):
        new_mass, new_total = torch.zeros_like(mass), torch.zeros_like(total)
        for known in range(goal + 1):
            reached, summed = mass[:, known] @ table, total[:, known] @ table  # [4], next letter
            for letter in range(4):
                after = int(following[known, letter])
                factor, hit = (boost, 1.0) if after == goal else (1.0, 0.0)
                new_mass[letter, after] += factor * reached[letter]
                new_total[letter, after] += factor * (summed[letter] + hit * reached[letter])
        mass, total = new_mass, new_total
    return float(total.sum() / mass.sum())


def _longest(text: str, motif: str) -> int:
    """The length of the longest end of `text` that is a beginning of `motif`."""
    return next(n for n in range(len(motif), -1, -1) if text.endswith(motif[:n]))
