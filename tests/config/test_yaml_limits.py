"""YAML that grows when it is read is refused in one line, and soon."""

import time
from pathlib import Path

import pytest

from vp3d.config.loader import load_config
from vp3d.errors import UserError


def lists(levels: int) -> str:
    """Lists of ten aliases of the list before: 10 ** levels values."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join([*lines, f"seed: *a{levels - 1}"])


def merges(levels: int) -> str:
    """Mappings that merge ten aliases of the mapping before."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, levels)]
    return "\n".join([*lines, f"optim: *a{levels - 1}"])


BOMBS = {
    "lists": lists(9),
    "merges": merges(9),
    "itself": "optim: &a [*a]",
    "itself in a mapping": "optim: &a {steps: *a}",
    "many keys": "\n".join(f"k{n}: 1" for n in range(15_000)),
    "long": "#" * 200_001,
    "deep": "optim: " + "[" * 900,
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_yaml_that_grows_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        load_config(files=[path])
    assert time.process_time() - start < 10.0
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_aliases_of_an_honest_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("optim: {steps: &a 7}\nseed: *a\n")
    config = load_config(files=[path])
    assert config.optim.steps == config.seed == 7


def test_a_long_value_is_quoted_in_part() -> None:
    with pytest.raises(UserError) as caught:
        load_config(overrides=[f"optim.steps={'a' * 10_000}"])
    assert len(str(caught.value)) < 200
