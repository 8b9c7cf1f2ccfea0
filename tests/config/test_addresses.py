"""Addresses are no files, and an output folder has a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from vp3d.checks import check_request
from vp3d.cli import main
from vp3d.config.addresses import check_places, is_address
from vp3d.config.loader import load_config
from vp3d.config.schema import Config
from vp3d.errors import UserError
from vp3d.weights.locate import find_weights

ADDRESSES = [
    "https://example.org/mug.png",
    "http://example.org/mug.png",
    "HTTPS://EXAMPLE.ORG/MUG.PNG",
    "ftp://example.org/mug.png",
    "file:///tmp/mug.png",
    "s3://bucket/mug.png",
    "gs://bucket/mug.png",
    "https:/example.org/mug.png",
    "/tmp/https:/example.org/mug.png",
    "data:image/png;base64,AAAA",
    "www.example.org/mug.png",
]
PATHS = [
    "mug.png",
    "/tmp/mug.png",
    "~/mug.png",
    "C:\\pictures\\mug.png",
    "C:/pictures/mug.png",
    "a:b/mug.png",
    "pictures/12:30/mug.png",
    "owner/name",
    "www/mug.png",
    "assets/toybox/clip",
]


@pytest.mark.parametrize("text", ADDRESSES)
def test_addresses(text: str) -> None:
    assert is_address(text)


@pytest.mark.parametrize("text", PATHS)
def test_paths(text: str) -> None:
    assert not is_address(text)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    "words",
    [
        ["a red mushroom", "--image", "{}"],
        ["a red mushroom", "image={}"],
        ["a red mushroom", "--config", "{}"],
        ["a red mushroom", "prior.path={}"],
        ["a red mushroom", "prior.ip_adapter={}"],
        ["a red mushroom", "rewards.clip={}"],
        ["a red mushroom", "output_dir={}"],
        ["doctor", "--config", "{}"],
    ],
    ids=lambda words: words[-2] + words[-1],
)
def test_one_line_says_that_addresses_are_not_read(
    words: list[str], address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([word.replace("{}", address) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "addresses are not read" in error and address in error


def test_a_mesh_has_no_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["render", "https://example.org/a.glb"]) == 2
    assert "addresses are not read" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_a_checkpoint_in_one_file_is_answered_with_the_page_on_converting(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match="is a single file.*use_stable_diffusion.md"):
        find_weights(str(tmp_path / name), "prior.path")


def test_an_address_of_the_hub_is_answered_with_its_id() -> None:
    config = Config(prompt="a red cube")
    config.prior.path = "https://huggingface.co/owner/some-model/tree/main"
    with pytest.raises(UserError, match="give the hub id: prior.path=owner/some-model"):
        check_places(config)


def test_words_may_look_like_an_address() -> None:
    check_places(Config(prompt="a sign with https://example.org", negative_prompt="http://x"))


@pytest.mark.parametrize("folder", ["", " ", "\t"])
def test_an_empty_output_folder_is_refused(
    folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(f"output_dir: {folder!r}\n".replace("'", '"'))
    for words in ([f"output_dir={folder}"], ["--config", str(tmp_path / "own.yaml")]):
        assert main.main(["a red mushroom", *words]) == 2
        assert "'output_dir' is empty" in capsys.readouterr().err
    with pytest.raises(UserError, match="output_dir"):
        check_request(Config(prompt="a red cube", output_dir=folder), new=True)


def test_the_api_refuses_an_address_too() -> None:
    config = Config(prompt="a red cube", image="https://example.org/mug.png")
    with pytest.raises(UserError, match="config file: https://example.org/a.yaml is an address"):
        load_config(None, ["https://example.org/a.yaml"])
    with pytest.raises(UserError, match="--image: https://example.org/mug.png is an address"):
        check_request(config, new=True)
