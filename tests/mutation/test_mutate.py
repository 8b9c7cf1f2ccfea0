"""The mutator by hand: what is changed, and what is left alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutation.mutate import mutants
from tests.mutation.page import parts, share
from tests.mutation.run import GROUPS, drawn, key_of, read_reasons
from vp3d.config.paths import ROOT


def changes(source: str) -> set[str]:
    return {mutant.apply(source) for mutant in mutants(source)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", {"a <= b"}),
        ("a is not b", {"a is b"}),
        ("a not in (b)", {"a in (b)"}),
        ("(a + b) * c", {"(a - b) * c", "(a + b) / c"}),
        ("a ** b", {"a * b"}),
        ("x = a and b or c", {"x = a or b or c", "x = a and b and c"}),
        ("x = 3", {"x = 4"}),
        ("x = 2.0", {"x = 3.0"}),
        ("x = 0.0", {"x = 1.0"}),
        ("x = True", {"x = False"}),
        ("x = -y", {"x = y"}),
        ("x = not y", {"x = y"}),
        ("x = min(a, b)", {"x = max(a, b)"}),
        ("x = a.detach()", {"x = (a)"}),
        ("x = (a - b).clamp(c, d)", {"x = (a + b).clamp(c, d)", "x = (a - b)"}),
        ("x += y", {"x -= y"}),
        ("if f(x):\n    y()", {"if not f(x):\n    y()"}),
        ("x = [\n    a\n    + b\n]", {"x = [\n    a\n    - b\n]"}),
        ('x = "é" if a < b else c', {'x = "é" if a <= b else c'}),
    ],
)
def test_each_kind_of_change(source: str, expected: set[str]) -> None:
    found = changes(source)
    assert {text.replace("((a - b))", "(a - b)") for text in found} == expected


@pytest.mark.parametrize(
    "source",
    [
        '"""3 < 4"""',
        "import a",
        "def f(x: A[3]) -> B[4]: ...",
        "raise E(3)",
        "x = f'{a + 1}'",
        "x = 'text'",
        "@f(3)\ndef g(): ...",
        "zip(a, b, strict=True)",
    ],
)
def test_what_is_left_alone(source: str) -> None:
    assert changes(source) == set()


@pytest.mark.parametrize("path", ["vp3d/train/loop.py", "vp3d/guidance/vp_sds.py"])
def test_every_mutant_of_a_module_is_python_and_differs(path: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    found = mutants(source)
    assert len(found) > 30 and len({m.apply(source) for m in found}) == len(found)
    tree = ast.dump(ast.parse(source))
    for mutant in found:
        assert ast.dump(ast.parse(mutant.apply(source))) != tree
        assert source.encode()[mutant.start : mutant.end].decode() == mutant.before


def test_every_group_has_its_sources_and_tests() -> None:
    for group in GROUPS.values():
        assert group.files() and all((ROOT / path).exists() for path in group.tests)


def test_every_reason_is_of_a_mutant_that_exists() -> None:
    """A reason of a line that has changed must be looked at again."""
    known = {
        key_of(path, source, mutant)
        for group in GROUPS.values()
        for path in group.files()
        for source in [(ROOT / path).read_text(encoding="utf-8")]
        for mutant in mutants(source)
    }
    assert set(read_reasons()) <= known


def test_the_tests_of_a_module_are_those_of_the_copy_that_runs(tmp_path: Path) -> None:
    """Of the checkout, a file that was added since would be missing, which looks like a failure."""
    folder = tmp_path / "tests" / "render"
    folder.mkdir(parents=True)
    (folder / "test_raster.py").write_text("")
    (folder / "test_other.py").write_text("from vp3d.render.shade import lambert")
    (folder / "test_last.py").write_text("")
    render = GROUPS["render"]
    assert render.tests_of("vp3d/render/raster.py", tmp_path) == ["tests/render/test_raster.py"]
    assert render.tests_of("vp3d/render/shade.py", tmp_path) == ["tests/render/test_other.py"]
    assert render.tests_of("vp3d/render/camera.py", tmp_path) == []


def test_a_sample_is_the_start_of_one_order() -> None:
    group = GROUPS["cfg"]
    whole, few = drawn(group, None, 0), drawn(group, 5, 0)
    assert whole[:5] == few and len(whole) == len({id(m) for _, _, m in whole}) > 5
    assert drawn(group, 5, 0) == few != drawn(group, 5, 1)


def test_a_share_has_its_wilson_interval() -> None:
    """z = 1.96: (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)."""
    assert share(45, 50) == "90 % (79 to 96)"
    assert share(4, 4) == "100 % (51 to 100)"
    assert share(0, 0) == ""


def test_a_survivor_is_listed_in_lines_that_fit() -> None:
    assert parts("vp3d/a.py | `if x < y:` | `<` -> `<=`") == ["vp3d/a.py: < -> <=", "    if x < y:"]
    assert max(map(len, parts(f"vp3d/a.py | `{'x' * 99}` | `1` -> `2`"))) == 90
