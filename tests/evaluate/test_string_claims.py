"""The claims on the values of strings and on molecules, whole but small, from training to page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vp3d.align.svdd import svdd
from vp3d.align.token_value import StringValue, monte_carlo
from vp3d.align.tokens import Strings, Tables, TokenModel, propose_tokens
from vp3d.align.value import Regressor
from vp3d.evaluate.claims import molecules, strings_value
from vp3d.evaluate.claims.command import measure_claim
from vp3d.train.generators import make_generator

SMALL = {"ROLL_OUTS": 60, "UPDATES": 2, "BATCH": 8, "TESTED": 20, "DRAWS": 50, "POOL": 320,
         "DESIGNED": 4, "SHORT": 4, "SHORT_UPDATES": 2, "LONG": 8, "LONG_UPDATES": 2,
         "COUNTS": (1, 3), "DESIGN_M": (2, 10), "MOTIFS": ("GAT",)}  # fmt: skip


def test_the_value_of_strings_is_measured_once_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(strings_value, name, value)
    said: list[str] = []
    text = measure_claim("strings-value", tmp_path, report=said.append)
    assert len(said) == 2 and "MC with M = 10 has more hits than best-of-300" in text
    page = (tmp_path / "align-strings-value.md").read_text(encoding="utf-8")
    assert "exact, of the tilted chain" in page and "soft MC, M = 32" in page
    assert "| MC, M = 10 |" in page and (tmp_path / "align-strings-value.png").is_file()
    assert measure_claim("strings-value", tmp_path, report=said.append) == text
    assert len(said) == 2


def test_molecules_are_measured_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rdkit", "selfies"):
        pytest.importorskip(name)
    for name, value in {"TRAINING": 30, "UPDATES": 2, "DRAWN": 3, "EQUAL": 20}.items():
        monkeypatch.setattr(molecules, name, value)
    text = measure_claim("molecules", tmp_path, report=lambda line: None)
    assert "SVDD-PM with M = 10 has a higher QED than best-of-10" in text
    page = (tmp_path / "align-molecules.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in page for name in ("grammar", "base", "best of 20"))


def test_a_table_of_fitted_values_steers_as_the_network_does() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, network = TokenModel(3, 4), StringValue(3, 4)
    tables = Tables.of(model)
    regressor = Regressor(network, mean=0.5, deviation=0.2, most=1.0, alpha=0.5)

    def reward(x: torch.Tensor) -> torch.Tensor:
        return (x == 0).double().mean(1)

    table = strings_value.value_table(tables, regressor, reward(tables.strings[tables.complete]))
    drawn = [
        svdd(Strings.start(tables, 50), 4, propose_tokens, value, 8, 0.5, make_generator(0, "t")).x
        for value in (monte_carlo(regressor, reward), tables.looked_up(table))
    ]
    assert torch.equal(*drawn) and (drawn[0] == 0).any() and (drawn[0] != 0).any()
