"""The config of a model asks for no network that nobody holds, and for nothing of the hub."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.helpers.tiny_clip import write_tiny_clip
from tests.helpers.tiny_models import RESOLUTION, save_pipeline
from vp3d.config.schema import PriorConfig
from vp3d.diffusion.load import load_prior
from vp3d.errors import UserError
from vp3d.rewards.encoders import load_clip
from vp3d.weights.model_settings import check_model_settings, offline


@pytest.mark.parametrize(
    "settings",
    [
        "owner/name",
        [],
        None,
        {"num_hidden_layers": 10**30},
        {"num_hidden_layers": 65},
        {"layers_per_block": [1, 65]},
        {"transformer_layers_per_block": [[1, 2], [3, 1000]]},
        {"hidden_size": 1_000_001},
        {"hidden_size": -(10**9)},
        {"hidden_size": float("inf")},
        {"hidden_size": float("nan")},
        {"block_out_channels": [1] * 65},
        {"text_config": {"vision": {"num_hidden_layers": 999}}},
        {"attn_implementation": "owner/kernel"},
        {"vision_config": {"_attn_implementation": "owner/kernel"}},
        {"experts_implementation": "x"},
    ],
)
def test_what_no_model_has_is_refused(settings: Any) -> None:
    with pytest.raises(ValueError, match="its config.json"):
        check_model_settings(settings)


def test_nested_groups_end() -> None:
    settings: dict[str, Any] = {}
    for _ in range(10):
        settings = {"a": settings}
    with pytest.raises(ValueError, match="nested"):
        check_model_settings(settings)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Online, but nobody may be asked; the addresses that were asked."""
    asked: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise OSError("no network in tests")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


@pytest.mark.parametrize("content", ["owner/name", {"num_hidden_layers": 10**30}, [], 7])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler"])
def test_a_part_of_a_pipeline_is_one_line_and_asks_nobody(
    part: str, content: Any, nobody: list[object], tmp_path: Path
) -> None:
    save_pipeline(tmp_path / "p")
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    (tmp_path / "p" / part / name).write_text(json.dumps(content))
    settings = PriorConfig(path=str(tmp_path / "p"), ip_adapter="", manifest="", vocabulary="")
    settings.resolution = RESOLUTION
    with pytest.raises(UserError) as caught:
        load_prior(settings)
    assert "\n" not in str(caught.value) and not nobody


def test_a_clip_asks_nobody(nobody: list[object], tmp_path: Path) -> None:
    load_clip(str(write_tiny_clip(tmp_path / "clip")))
    assert not nobody and constants.HF_HUB_OFFLINE is False


def test_offline_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (True, False):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", before)
        with pytest.raises(KeyError), offline():
            assert constants.HF_HUB_OFFLINE is True
            raise KeyError
        with offline(False):
            assert constants.HF_HUB_OFFLINE is before
        assert constants.HF_HUB_OFFLINE is before
