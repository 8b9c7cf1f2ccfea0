"""`models convert`: a pickle of tensors becomes safetensors; nothing in another pickle is run."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_rewards import published_state, write_vocabulary
from vp3d.cli.main import main
from vp3d.config.paths import ROOT
from vp3d.errors import UserError
from vp3d.rewards.imagereward import load_imagereward
from vp3d.weights.catalogue import MODELS, File, Part
from vp3d.weights.convert_pickle import PROBES, convert, read_tensors
from vp3d.weights.locate import read_receipt
from vp3d.weights.verify import verify


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VP3D_MODELS", str(tmp_path / "models"))
    first, second = MODELS["imagereward"].parts
    # A vocabulary of a few words has another hash.
    tiny = Part((File("vocab.txt"),), second.sources)
    monkeypatch.setitem(MODELS, "imagereward", replace(MODELS["imagereward"], parts=(first, tiny)))
    return tmp_path / "models"


def save_pickle(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


def test_imagereward_from_the_publishers_file(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save_pickle(tmp_path / "ImageReward.pt", published_state())
    words = write_vocabulary(tmp_path / "bert" / "vocab.txt").parent
    assert main(["models", "convert", "imagereward", str(file), "--from", str(words)]) == 0
    assert capsys.readouterr().out == f"{home / 'imagereward'}\n"
    assert (
        read_receipt(home / "imagereward")["model.safetensors"]["source"]
        == "converted from ImageReward.pt"
    )
    model = load_imagereward("imagereward")
    state = published_state()
    torch.testing.assert_close(
        model.net.blip.visual_encoder.cls_token, state["blip.visual_encoder.cls_token"]
    )
    assert "as published" in verify(["imagereward"])
    with pytest.raises(UserError, match="exists already"):
        convert("imagereward", file, [])


def test_hpsv2_is_unwrapped_and_gets_its_config(home: Path, tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3).half()
    state = {"module.visual.conv1.weight": shared, "module.other": shared.T, "epoch": 3}
    folder = convert(
        "hpsv2.1", save_pickle(tmp_path / "hps.pt", {"state_dict": state, "epoch": 10}), []
    )
    stored = load_file(folder / "open_clip_model.safetensors")
    assert stored.keys() == {"visual.conv1.weight", "other"}
    assert torch.equal(stored["other"], shared.T) and stored["other"].dtype == torch.float16
    assert (folder / "open_clip_config.json").is_file()


def test_every_publishers_pickle_can_be_converted() -> None:
    assert PROBES.keys() == {
        name for name, model in MODELS.items() if any(part.pickle for part in model.parts)
    }


def test_nothing_else_reads_a_pickle_or_runs_code_that_was_fetched() -> None:
    files = [
        *(ROOT / "vp3d").rglob("*.py"),
        *(ROOT / "integrations").rglob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
    ]
    assert len(files) > 100
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not re.search(
            r"pickle\.loads?\(|allow_pickle=True|weights_only=False|\.hub\.load", text
        ), file
        assert not re.search(r"trust_remote_code[\"']?\s*[:=](?!\s*False)", text), file
        loads = re.findall(r"torch\.load\(.*", text)
        assert bool(loads) == (file.name == "convert_pickle.py") and all(
            "weights_only=True" in line for line in loads
        ), file


class Evil:
    """A pickle that would write a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("plain", [True, False])
def test_code_in_a_pickle_is_never_run(plain: bool, home: Path, tmp_path: Path) -> None:
    trap, file = tmp_path / "ran", tmp_path / "evil.pt"
    state = {"blip.visual_encoder.cls_token": torch.zeros(1), "x": Evil(trap)}
    if plain:
        file.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, file)
    with pytest.raises(UserError) as caught:
        convert("imagereward", file, [])
    assert "\n" not in str(caught.value) and not trap.exists() and not home.exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_tensors(tmp_path / "none.pt")
    with pytest.raises(UserError, match="is a folder"):
        read_tensors(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "done.safetensors")
    with pytest.raises(UserError, match="safetensors already: put it .* NAME --from FOLDER"):
        read_tensors(tmp_path / "done.safetensors")
    whole = save_pickle(tmp_path / "whole.pt", {"a": torch.zeros(99)}).read_bytes()
    for number, data in enumerate(
        (b"hello", b"", b"\x80\x02}q\x00", b"PK\x03\x04", whole[:-50], whole[:200], b"\x00" * 99)
    ):
        file = tmp_path / f"{number}.pt"
        file.write_bytes(data)
        with pytest.raises(
            UserError,
            match="damaged or contains more than tensors|is not a torch checkpoint .[A-Z]",
        ) as caught:
            read_tensors(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is not a state dict but a list"):
        read_tensors(save_pickle(tmp_path / "list.pt", [1, 2]))
    with pytest.raises(UserError, match="is not ImageReward.pt: it has no tensor blip"):
        convert("imagereward", save_pickle(tmp_path / "other.pt", {"a": torch.zeros(1)}), [])
    with pytest.raises(UserError, match="needs no conversion"):
        convert("sd15", tmp_path / "text.pt", [])
