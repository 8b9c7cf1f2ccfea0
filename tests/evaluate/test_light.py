"""The colour errors with and without light of a scene that is lit exactly as the world is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.assets import asset_of
from vp3d.errors import UserError
from vp3d.evaluate import light
from vp3d.export.formats import WRITERS
from vp3d.worlds.toybox.scenes import parse_caption
from vp3d.worlds.toybox.truth import lit, true_mesh

PROMPT = "an orange sphere"


def test_table_of_a_lit_scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = lit(true_mesh(parse_caption(PROMPT), 48))
    WRITERS["glb"](asset_of(scene), tmp_path / "an-orange-sphere.glb")
    (tmp_path / "a-lovely-day.glb").write_bytes(b"")
    light.main([str(tmp_path)])
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "| prompt | baked | removed | darkest side | explained |"
    name, baked, removed, _, explained = (word.strip() for word in rows[2].split("|")[1:-1])
    assert name == PROMPT and float(baked) > 6.0
    assert float(removed) < 2.5 and float(explained) > 0.9
    assert len(rows) == 4 and rows[3].startswith(f"| **median** | {baked} | {removed} | ")


def test_a_light_that_stays_counts_as_it_is() -> None:
    bare = true_mesh(parse_caption(PROMPT), 48)
    found = light.errors_of(PROMPT, bare)
    assert found is not None and found.baked < 0.5
    assert found.removed == found.baked, "there is no light to take out"


def test_folders_without_toybox_prompts_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a-dragon.glb").write_bytes(b"")
    with pytest.raises(UserError, match="no asset of a toybox prompt"):
        light.main([str(tmp_path)])
