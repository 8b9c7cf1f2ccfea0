"""No folder of the user's machine is in what a report shows; what repeats a run stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vp3d.config.schema import Config
from vp3d.report.privacy import file_name, public_events, public_settings

HOME = Path("/home/ann b")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/ann/pictures/mug.png", "mug.png"),
        ("/home/ann/my pictures/mug 1.png", "mug 1.png"),
        ("../ann/mug.png", "mug.png"),
        ("~/mug.png", "mug.png"),
        ("ann/mug.png", "mug.png"),
        ("C:\\Users\\ann\\mug.png", "mug.png"),
        ("\\\\server\\ann\\mug.png", "mug.png"),
        ("mug.png", "mug.png"),
        ("", ""),
    ],
)
def test_the_picture_is_shown_by_its_name(value: str, shown: str) -> None:
    assert yaml.safe_load(public_settings({"image": value}))["image"] == shown


def test_models_are_shown_as_a_reader_can_use_them() -> None:
    prior = {"path": "/home/ann/models/sd", "vae": "madebyollin/taesd", "ip_adapter": "ip-adapter"}
    tree = {"prior": prior, "rewards": {"clip": "assets/toybox/clip"}, "seed": 3}
    found = yaml.safe_load(public_settings(tree))
    assert found["prior"] == {**prior, "path": "sd"}
    assert (found["rewards"]["clip"], found["seed"]) == ("assets/toybox/clip", 3)


@pytest.mark.parametrize(
    "folder", ["/home/ann/runs", "client-x", "../x", "~", "~/runs", "D:\\ann", "/tmp/ann runs/"]
)
def test_the_output_folder_is_hidden_unless_it_is_the_default(folder: str) -> None:
    assert yaml.safe_load(public_settings({"output_dir": folder}))["output_dir"] == "..."
    default = Config().output_dir
    assert yaml.safe_load(public_settings({"output_dir": default}))["output_dir"] == default


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("cannot read /home/ann/x/y.png; try again", "cannot read y.png; try again"),
        ("run `launch.py export '/home/ann b/runs/r1'`", "run `launch.py export 'r1'`"),
        ("/home/ann b is full", "... is full"),
        ("/home/ann b/my runs/r2/config.yaml is damaged", "my runs/r2/config.yaml is damaged"),
        ("see ~/models/sd", "see sd"),
        ("from C:\\Users\\ann\\mug.png", "from mug.png"),
        ("fetch https://example.org/a/b.bin", "fetch https://example.org/a/b.bin"),
        ("assets/toybox/clip is missing", "assets/toybox/clip is missing"),
        ("3/4 of the steps, 2 / 3 done", "3/4 of the steps, 2 / 3 done"),
    ],
)
def test_messages_lose_folders(message: str, shown: str) -> None:
    events = [{"kind": "warning", "message": message, "more": {"list": [message]}, "step": 4}]
    found = public_events(events, [HOME, HOME / "runs", Path("/"), Path("outputs")])[0]
    assert (found["message"], found["more"]["list"], found["step"]) == (shown, [shown], 4)


def test_a_prompt_is_never_changed() -> None:
    prompt = "a sign that says /home/ann/x"
    assert public_events([{"kind": "start", "prompt": prompt}], [])[0]["prompt"] == prompt
    tree = {"prompt": prompt, "negative_prompt": "~/x"}
    assert yaml.safe_load(public_settings(tree)) == tree


def test_file_name_of_what_has_none() -> None:
    assert (file_name("/"), file_name(".."), file_name("a/")) == ("/", "..", "a")
