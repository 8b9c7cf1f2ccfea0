"""What a file or an override may say: folded text, numbers, lists, and keys with dots."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from vp3d.cli import main
from vp3d.config.loader import load_config
from vp3d.config.reader import Dumper, unfold
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


@pytest.mark.parametrize(
    ("written", "seed"), [("010", 10), ("08", 8), ("0x1F", 31), ("0o17", 15), ("0b11", 3)]
)
def test_whole_numbers_are_those_of_yaml_1_2(written: str, seed: int, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"seed: {written}\n")
    assert load_config(None, [tmp_path / "own.yaml"]).seed == seed
    assert load_config(None, [], [f"seed={written}"]).seed == seed


def test_a_time_is_no_number_of_seconds() -> None:
    for word in ("optim.steps=1:30", "optim.lr_density=1:30.5"):
        with pytest.raises(UserError, match="number"):
            load_config(None, [], [word])


def test_text_that_another_reader_takes_as_a_number_is_quoted(tmp_path: Path) -> None:
    for text in ("010", "1:30", "1e-3", "0o17", "1_000", ".5", ".inf"):
        dumped = yaml.dump({"prompt": text}, Dumper=Dumper)
        assert dumped == f"prompt: '{text}'\n"
        (tmp_path / "own.yaml").write_text(dumped)
        assert load_config(None, [tmp_path / "own.yaml"]).prompt == text


def test_a_long_run_of_digits_is_read_in_time(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"prompt: {'1' * 150_000}x\n")
    started = time.monotonic()
    assert len(load_config(None, [tmp_path / "own.yaml"]).prompt) == 150_001
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("text", ["optim.steps: 7", '"optim.steps": 7', "optim: {steps: 7}"])
def test_keys_with_dots_are_groups(text: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    assert load_config(None, [tmp_path / "own.yaml"]).optim.steps == 7


def test_dots_and_a_group_are_joined_and_a_field_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("optim: {views: 3}\noptim.steps: 7\nguidance.lam.start: 0.5\n")
    config = load_config(None, [path])
    assert (config.optim.views, config.optim.steps, config.guidance.lam.start) == (3, 7, 0.5)
    path.write_text("optim: {steps: 3}\noptim.steps: 7\n")
    with pytest.raises(UserError, match=r"'optim\.steps' occurs twice"):
        load_config(None, [path])


def test_a_group_without_keys_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("optim:\n  # steps: 3\nseed: 5\n")
    config = load_config(None, [tmp_path / "own.yaml"])
    assert config.seed == 5 and config.optim == load_config(None).optim
    with pytest.raises(UserError, match="'guidance.lam'"):
        load_config(None, [], ["guidance.lam="])


@pytest.mark.parametrize("text", ["glb,obj", "glb obj", "glb; obj", "GLB, .obj,", "[glb, OBJ]"])
def test_a_list_is_read_in_every_common_style(text: str) -> None:
    assert load_config(None, [], [f"export.formats={text}"]).export.formats == ["glb", "obj"]


def test_a_choice_may_have_capitals() -> None:
    assert load_config(None, [], ["guidance.mode=Joint"]).guidance.mode == "joint"


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ('optim: {steps: "100"}', "is text and not a whole number; write it without quotes"),
        ('export: {print: "yes"}', "is text and not true or false; write it without quotes"),
        ("prompt: yes", "is not text; write it in quotes"),
        ("prompt: 1.5", "is not text; write it in quotes"),
    ],
)
def test_quotes_are_advised_where_they_decide(text: str, advice: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(None, [tmp_path / "own.yaml"])
    assert advice in str(caught.value)
