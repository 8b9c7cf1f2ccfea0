"""The world of molecules: strings of SELFIES whose reward is QED, made from hand-written fragments.

A SELFIES string (Krenn et al., arXiv 1905.13741) is a molecule whatever its tokens are, so a
diffusion model on strings (`align/tokens.py`) draws molecules. The training molecules come from a
small grammar: a ring or two with groups on them, joined by linkers. There is no data set in it.

QED, the quantitative estimate of drug-likeness in [0, 1], is RDKit's (Bickerton et al., Nature
Chemistry 4, 2012, doi 10.1038/nchem.1243). It needs the packages of the extra `molecules`.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from vp3d.errors import UserError

LENGTH = 20  # tokens of a string; shorter ones end with the empty token
EMPTY = "[nop]"
TOKENS = (
    *(EMPTY, "[C]", "[=C]", "[N]", "[=N]", "[O]", "[=O]", "[S]", "[F]", "[Cl]", "[#N]", "[#C]"),
    *("[Branch1]", "[=Branch1]", "[#Branch1]", "[Branch2]", "[=Branch2]", "[#Branch2]"),
    *("[Ring1]", "[Ring2]"),
)
RINGS = (  # Kekule structures; {} is where a group is
    *("C1=CC=C({})C=C1", "C1=CC=CC({})=C1", "C1=CN=C({})C=C1", "C1=CC({})=CN=C1"),
    *("C1CCN({})CC1", "C1CN({})CCO1", "C1CCC({})C1", "C1=CSC({})=C1", "C1=COC({})=C1"),
)
LINKERS = ("", "C", "CC", "O", "N", "S", "C(=O)", "C(=O)N", "NC(=O)", "OC", "CN", "CO")
STEMS = ("", "C", "CC", "NC")  # between a ring and a group
ENDS = ("C", "CC", "F", "Cl", "O", "N", "OC", "C#N", "C(=O)O", "C(=O)N", "CCO", "C3CC3", "N(C)C")


def draw_smiles(generator: torch.Generator) -> str:
    """One molecule of the grammar as SMILES: a ring, a linker, and a group or a second ring."""

    def pick(words: tuple[str, ...]) -> str:
        return words[int(torch.randint(len(words), (), generator=generator))]

    if float(torch.rand((), generator=generator)) < 0.5:
        return pick(RINGS).replace("{}", pick(STEMS) + pick(ENDS))
    second = pick(RINGS).replace("({})", "").replace("1", "2")
    return pick(RINGS).replace("{}", pick(LINKERS) + second)


def draw_molecules(count: int, generator: torch.Generator) -> Tensor:
    """Strings [count, LENGTH] int64 of the grammar, those that fit length and tokens.

    UserError without the packages of the extra `molecules`.
    """
    selfies = _module("selfies")
    found: list[list[int]] = []
    while len(found) < count:
        tokens = list(selfies.split_selfies(selfies.encoder(draw_smiles(generator))))
        if len(tokens) <= LENGTH and all(token in TOKENS for token in tokens):
            tokens += [EMPTY] * (LENGTH - len(tokens))
            found.append([TOKENS.index(token) for token in tokens])
    return torch.tensor(found).reshape(-1, LENGTH)


def to_smiles(x: Tensor) -> list[str]:
    """SMILES of strings [R, LENGTH]; one without an atom is empty."""
    decoder = _module("selfies").decoder
    texts: list[str] = [decoder("".join(TOKENS[k] for k in row)) for row in x.tolist()]
    return texts


def drug_likeness(x: Tensor) -> Tensor:
    """QED [R] float64 in [0, 1] of strings [R, LENGTH]; 0 for one without an atom."""
    return torch.tensor([_qed(smiles) for smiles in to_smiles(x)], dtype=torch.float64)


@lru_cache(maxsize=200_000)
def _qed(smiles: str) -> float:
    chem, qed = _module("rdkit.Chem"), _module("rdkit.Chem.QED")
    molecule = chem.MolFromSmiles(smiles)
    if molecule is None or not molecule.GetNumAtoms():
        return 0.0
    return float(qed.qed(molecule))


def canonical(x: Tensor) -> list[str]:
    """The canonical SMILES of strings [R, LENGTH], by which equal molecules are recognised."""
    chem = _module("rdkit.Chem")
    molecules = [chem.MolFromSmiles(smiles) for smiles in to_smiles(x)]
    return ["" if one is None else str(chem.MolToSmiles(one)) for one in molecules]


@lru_cache(maxsize=8)
def _module(name: str) -> ModuleType:
    """A module of the extra `molecules`."""
    try:
        if name == "selfies":
            import selfies

            return selfies
        from rdkit import Chem, RDLogger
        from rdkit.Chem import QED
    except ImportError as error:
        raise UserError(
            "molecules need the packages rdkit and selfies: pip install 'vp3d[molecules]'"
        ) from error
    RDLogger.DisableLog("rdApp.*")  # warnings on unusual valences
    return QED if name.endswith("QED") else Chem
