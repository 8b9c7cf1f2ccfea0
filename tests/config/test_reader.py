"""What a file or an override may say: folded text, and whole numbers with an exponent."""

from __future__ import annotations

from pathlib import Path

import pytest

from vp3d.cli import main
from vp3d.config.loader import load_config
from vp3d.config.reader import unfold
from vp3d.errors import UserError

PROMPT = "a red mushroom with a white stem"


@pytest.mark.parametrize(
    "text",
    [
        f"prompt: {PROMPT}\n",
        f"prompt: '{PROMPT}'\n",
        "prompt: >\n  a red mushroom\n  with a white stem\n",
        "prompt: >-\n  a red mushroom\n  with a white stem\n",
        "prompt: >+\n  a red mushroom\n  with a white stem\n\n",
        "prompt: |\n  a red mushroom\n  with a white stem\n",
        "prompt: |-\n  a red mushroom\n  with a white stem",
        "prompt: |+\n  a red mushroom\n    with a white stem\n\n\n",
        "prompt: >\n  a red mushroom\n\n  with a white stem\n",
        "prompt: |\r\n  a red mushroom\r\n  with a white stem\r\n",
        'prompt: "a red mushroom\\nwith a white stem\\n"\n',
        'prompt: "a red mushroom\\u2028with a white stem"\n',
        'prompt: "a red mushroom\n  with a white stem"\n',
    ],
)
def test_every_style_of_yaml_text_is_one_prompt(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(text.encode())
    assert load_config(None, [path]).prompt == PROMPT
    theirs = tmp_path / "theirs.yaml"
    indented = "".join(f"    {line}" for line in text.splitlines(keepends=True))
    theirs.write_bytes(
        f"system_type: dreamfusion-system\nsystem:\n  prompt_processor:\n{indented}".encode()
    )
    assert load_config(None, [theirs]).prompt == PROMPT


def test_text_without_a_line_break_is_unchanged() -> None:
    for text in ("  a red cube  ", "a\tred cube", ""):
        assert unfold(text, "prompt") == text
    assert unfold("a\nb", "output_dir") == "a\nb" and unfold("a b\n", "image") == "a b"


@pytest.mark.parametrize("word", ["a red\tcube", "a red\ncube", "prompt=a red\ncube"])
def test_control_characters_on_the_command_line_stay_refused(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([word]) == 2
    assert "control character" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["1e4", "1.0e4", "1E+4", "+1e4", "100e2", "10000.0", "1_0000"])
def test_a_whole_number_may_have_an_exponent(tmp_path: Path, value: str) -> None:
    (tmp_path / "own.yaml").write_text(f"optim: {{steps: {value}}}\n")
    for files, words in (([tmp_path / "own.yaml"], []), ([], [f"optim.steps={value}"])):
        steps = load_config(None, files, words).optim.steps
        assert steps == 10000 and type(steps) is int


def test_max_steps_of_threestudio_may_too(tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text("system_type: dreamfusion-system\nsystem: {}\ntrainer: {max_steps: 1e4}\n")
    assert load_config(None, [path]).optim.steps == 10000


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("optim.steps=1.5", "1.5 is not a whole number"),
        ("optim.steps=1e-1", "0.1 is not a whole number"),
        ("optim.steps=1e99", "1e+99 is rounded; write all its digits"),
        ("optim.steps=.inf", "inf is not a whole number"),
        ("optim.steps=.nan", "nan is not a whole number"),
        ("optim.steps=1e7", "10000000 is out of range"),
        ("optim.steps=true", "True is not a whole number"),
        ("optim.steps=ten", "'ten' is not a whole number"),
        ("optim.steps=", "a whole number as optim.steps=..., without blanks"),
        ("seed=9007199254740993.0e0", "9007199254740992"),
    ],
)
def test_other_numbers_are_refused_without_a_contradiction(word: str, part: str) -> None:
    if word.startswith("seed"):
        assert load_config(None, [], [word]).seed == int(part)
        return
    with pytest.raises(UserError) as caught:
        load_config(None, [], [word])
    assert part in str(caught.value)
