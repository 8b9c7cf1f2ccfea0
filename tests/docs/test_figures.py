"""The figures of the embedded models in the documents are those that were measured."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "embedded_models.md"
MANIFEST = ROOT / "assets" / "toybox" / "MANIFEST.json"


def test_figures_are_those_of_the_manifest():
    page = PAGE.read_text(encoding="utf-8")
    figures = json.loads(MANIFEST.read_text(encoding="utf-8"))["figures"]
    for name, figure in figures.items():
        row = re.search(rf"^\| {name} \|.*\| ([\d.]+) (dB|%) \((\d+)\) \|$", page, re.MULTILINE)
        assert row, f"{PAGE.name} has no row for the figure '{name}'"
        shown, unit, count = row.groups()
        value = figure["value"] * (100 if unit == "%" else 1)
        digits = len(shown.partition(".")[2])
        assert float(shown) == round(value, digits), f"{name}: {shown} is shown, {value:g} measured"
        assert int(count) == figure["count"], f"{name}: another number of captions"
