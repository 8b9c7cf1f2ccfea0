"""The world of molecules; the packages of the extra `molecules` are needed."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from vp3d.align.svdd import svdd
from vp3d.align.tokens import Strings, TokenModel, posterior_mean, propose_tokens
from vp3d.errors import UserError
from vp3d.evaluate.claims import molecules as claim
from vp3d.worlds import molecules
from vp3d.worlds.molecules import EMPTY, LENGTH, TOKENS, draw_molecules, drug_likeness, to_smiles


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_the_packages_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    molecules._module.cache_clear()
    for name in ("selfies", "rdkit"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'vp3d\[molecules\]'"):
        draw_molecules(1, seeded())
    molecules._module.cache_clear()


@pytest.fixture
def chemistry() -> None:
    for name in ("rdkit", "selfies"):
        pytest.importorskip(name)
        importlib.invalidate_caches()


@pytest.mark.usefixtures("chemistry")
def test_molecules_of_the_grammar_are_what_their_smiles_say() -> None:
    from rdkit import Chem

    x = draw_molecules(60, seeded())
    assert x.shape == (60, LENGTH) and int(x.max()) < len(TOKENS)
    again, smiles = seeded(), []
    while len(smiles) < 200:
        smiles.append(Chem.CanonSmiles(molecules.draw_smiles(again)))
    assert set(molecules.canonical(x)) <= set(smiles)
    assert len(set(molecules.canonical(x))) > 40
    assert bool((drug_likeness(x) > 0.2).all())


@pytest.mark.usefixtures("chemistry")
def test_qed_is_that_of_rdkit_and_a_string_without_atoms_has_none() -> None:
    from rdkit import Chem
    from rdkit.Chem import QED

    x = draw_molecules(5, seeded(1))
    expected = [QED.qed(Chem.MolFromSmiles(text)) for text in to_smiles(x)]
    assert drug_likeness(x).tolist() == pytest.approx(expected)
    nothing = torch.full((1, LENGTH), TOKENS.index(EMPTY))
    assert to_smiles(nothing) == [""] and drug_likeness(nothing).tolist() == [0.0]


@pytest.mark.usefixtures("chemistry")
def test_steering_raises_the_drug_likeness_of_an_untrained_model() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TokenModel(len(TOKENS), LENGTH, width=16, layers=1).eval()
    value = posterior_mean(drug_likeness)
    plain, steered = (
        drug_likeness(
            svdd(Strings.start(model, 8), LENGTH, propose_tokens, value, m, 0.0, seeded(2)).x
        )
        for m in (1, 8)
    )
    assert float(steered.mean()) > float(plain.mean()) + 0.05


def test_the_table_compares_at_equal_reward_calls() -> None:
    def arm(qed: float) -> dict[str, object]:
        values = [qed + 0.001 * (k % 7) for k in range(claim.DRAWN)]
        return {"qed": values, "distinct": 90, "atoms": 1.0, "best": ["C", "N", "O"]}

    names = ["grammar", "base", "best of 10", "best of 200", "SVDD-PM, M = 10"]
    found = claim.finding(dict(zip(names, map(arm, (0.6, 0.5, 0.7, 0.8, 0.75)), strict=True)))
    assert [verdict.holds for verdict in found.verdicts] == [True, False]
    assert [row[2] for row in found.tables[0].rows] == [None, 0, 10, 200, 200]
