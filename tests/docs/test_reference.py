"""The reference pages say what the code says."""

import argparse
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """docs/generate_reference.py, which is no part of the package."""
    path = ROOT / "docs" / "generate_reference.py"
    spec = importlib.util.spec_from_file_location("generate_reference", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_page_is_stale(generator):
    stale = [str(path.relative_to(ROOT)) for path in generator.stale_pages()]
    assert not stale, f"run `python docs/generate_reference.py`, which rewrites {', '.join(stale)}"


def test_every_key_of_the_config_has_a_meaning(generator):
    """The meaning is the comment beside the field."""
    page = generator.configuration_page().partition("## Presets")[0]
    keys = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(keys) > 80
    assert not [line for line in keys if line.endswith("|  |")]


@dataclass
class Sample:
    """A field each for the places where a comment may be."""

    beside: int = 1  # beside it
    # above it,
    # in two lines
    above: int = 2
    inside: str = "long"  # inside it
    bare: int = 3
    quoted: str = "# no comment"


def test_comments_of_fields(generator):
    assert generator.comments(Sample) == {
        "beside": "beside it",
        "above": "above it, in two lines",
        "inside": "inside it",
        "bare": "",
        "quoted": "",
    }


def test_command_line_page_lists_verbs_arguments_and_defaults(generator):
    parser = argparse.ArgumentParser(prog="anything", description="Makes things.")
    verbs = parser.add_subparsers()
    make = verbs.add_parser("make", help="make one", epilog="examples:\n  vp3d make x")
    make.add_argument("prompt", nargs="*", help="what to make")
    make.add_argument("--seed", type=int, default=7, metavar="N", help="default %(default)s, 100%%")
    make.add_argument("--hidden", help=argparse.SUPPRESS)
    page = generator.command_line_page(parser)
    assert "| [`make`](#make) | make one |" in page
    assert "vp3d make [PROMPT ...] [options]" in page
    assert "| `--seed N` | default 7, 100% | `7` |" in page
    assert "  vp3d make x" in page
    assert "hidden" not in page and "anything" not in page
