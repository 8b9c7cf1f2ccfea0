"""Settings in pieces are answered with the word they should be; prompts are left alone."""

from __future__ import annotations

import pytest

from vp3d.cli import main
from vp3d.cli.assignments import check_assignments
from vp3d.errors import UserError


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["a red cube", "optim.steps", "=", "100"], "optim.steps=100"),
        (["a red cube", "optim.steps=", "100"], "optim.steps=100"),
        (["a red cube", "optim.steps", "=100"], "optim.steps=100"),
        (["a red cube", "optim.steps:", "100"], "optim.steps=100"),
        (["a red cube", "optim.steps", "100"], "optim.steps=100"),
        (["optim.steps", "=", "100", "a red cube"], "optim.steps=100"),
        (["optim.steps", "=", "100"], "optim.steps=100"),
        (["a red cube", "seed", "=", "3"], "seed=3"),
        (["a red cube", "prompt", "=", "a blue cone"], 'prompt="a blue cone"'),
        (["a red cube", "output_dir", "="], "output_dir=VALUE"),
        (["a red cube", "seed=1", "export.grid", "=", "9"], "export.grid=9"),
        (["a red cube", "=", "3"], "optim.steps=100"),
    ],
)
def test_pieces_of_a_setting(words: list[str], meant: str) -> None:
    with pytest.raises(UserError, match="key=value") as caught:
        check_assignments(words)
    assert str(caught.value).endswith(f"write {meant}")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["a red cube"],
        ["mushroom"],
        ["a red cube", "optim.steps=100", "seed=3"],
        ["output_dir=", "a red cube"],
        ["negative_prompt=", "a red cube"],
        ["prompt=a = b"],
        ["a red = cube"],
        ["e.g. a cube"],
        ["a", "red", "cube"],
    ],
)
def test_whole_words_pass(words: list[str]) -> None:
    check_assignments(words)


def test_the_command_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["a red cube"], ["doctor"], ["evaluate"]):
        assert main.main([*words, "optim.steps", "=", "100"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "write optim.steps=100" in error
