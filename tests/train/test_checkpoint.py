"""Checkpoints: exact round trips, damage found and skipped, a kill in mid-write is harmless."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vp3d.config.identity import settings_hash, stage_settings
from vp3d.config.schema import Config
from vp3d.errors import UserError
from vp3d.train import checkpoint


def tensors_of(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "field.grid": torch.randn(4, 5, 6, generator=generator),
        "optimizer.grid.step": torch.tensor(float(seed)),
        "generator.camera": generator.get_state(),
        "occupancy.binary": torch.rand(9, generator=generator) > 0.5,
        "field.empty": torch.zeros(0, 3),
    }


def refuse(path: Path, reason: str) -> None:
    raise AssertionError(f"{path} should be whole: {reason}")


def test_round_trip_is_exact(tmp_path: Path) -> None:
    tensors, meta = tensors_of(3), {"step": 7, "watchdog": {"rate_scale": 0.1}}
    checkpoint.save(tmp_path, 7, tensors, meta)
    found = checkpoint.load_latest(tmp_path, refuse)
    assert (
        found is not None and found.meta["step"] == 7 and found.meta["watchdog"] == meta["watchdog"]
    )
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)
    assert all(found.tensors[name].dtype == tensors[name].dtype for name in tensors)


def test_only_the_newest_are_kept_and_none_is_none(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path, refuse) is None
    for iteration in (9, 10, 11, 100):
        checkpoint.save(tmp_path, iteration, tensors_of(iteration), {})
    assert [int(path.stem) for path in checkpoint.list_checkpoints(tmp_path)] == [11, 100]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "00000011.safetensors",
        "00000100.safetensors",
    ]


def test_equal_content_is_equal_bytes_whatever_the_order_of_its_notes(tmp_path: Path) -> None:
    meta = {"step": 7, "stage": "coarse", "loop": {"b": 1, "a": 2}}
    turned = {"loop": {"a": 2, "b": 1}, "stage": "coarse", "step": 7}
    for name, notes in (("one", meta), ("other", turned)):
        checkpoint.write(tmp_path / f"{name}.safetensors", 7, tensors_of(3), notes)
    one, other = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other


def test_a_parameter_has_the_digest_of_its_values() -> None:
    values = torch.arange(6.0).reshape(2, 3)
    same = {"a": torch.nn.Parameter(values), "b": values.T}
    plain = {"b": values.T.contiguous(), "a": values}
    assert checkpoint.content_digest(same, {}) == checkpoint.content_digest(plain, {})
    moved = {"a": values.T, "b": values}
    assert checkpoint.content_digest(moved, {}) != checkpoint.content_digest(plain, {})


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "garbage", "header", "number"])
def test_damage_falls_back_to_the_previous_one(tmp_path: Path, damage: str) -> None:
    checkpoint.save(tmp_path, 1, tensors_of(1), {})
    newest = checkpoint.save(tmp_path, 2, tensors_of(2), {})
    data = bytearray(newest.read_bytes())
    data[-3] ^= 16 if damage == "flip" else 0
    data[12] ^= 255 if damage == "header" else 0
    if damage == "number":  # valid JSON still, but another iteration
        data = data.replace(b'iteration\\": 2', b'iteration\\": 3')
        assert data != newest.read_bytes()
    newest.write_bytes(
        {"cut": data[: len(data) // 2], "empty": b"", "garbage": b"no checkpoint" * 99}.get(
            damage, data
        )
    )
    told: list[Path] = []
    found = checkpoint.load_latest(tmp_path, lambda path, reason: told.append(path))
    assert found is not None and found.meta["iteration"] == 1 and told == [newest]
    assert torch.equal(found.tensors["field.grid"], tensors_of(1)["field.grid"])


def test_all_damaged_is_one_clear_line(tmp_path: Path) -> None:
    for iteration in (1, 2):
        checkpoint.save(tmp_path, iteration, tensors_of(1), {}).write_bytes(b"x")
    with pytest.raises(UserError, match="all 2 are damaged") as caught:
        checkpoint.load_latest(tmp_path, lambda path, reason: None)
    assert "\n" not in str(caught.value)


def test_config_hash_follows_what_is_trained_only() -> None:
    base, export, seed, lr = Config(), Config(), Config(), Config()
    export.export.faces, export.output_dir = 5, "elsewhere"
    seed.seed, lr.optim.lr_density = 1, 0.5
    hashes = [
        settings_hash(stage_settings(config, "coarse")) for config in (base, export, seed, lr)
    ]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_adam_goes_on_bit_for_bit() -> None:
    def model() -> tuple[torch.nn.Linear, torch.optim.Adam]:
        layer = torch.nn.Linear(3, 2)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.fill_(0.3)
        return layer, torch.optim.Adam(
            [{"params": [layer.weight], "lr": 0.1}, {"params": [layer.bias], "lr": 0.01}]
        )

    def train(layer: torch.nn.Linear, adam: torch.optim.Adam, steps: range) -> None:
        for step in steps:
            adam.zero_grad()
            layer(torch.tensor([[1.0, step, -2.0]])).square().sum().backward()
            adam.step()

    def names(layer: torch.nn.Linear) -> dict[Tensor, str]:
        return {parameter: name for name, parameter in layer.named_parameters()}

    straight, straight_adam = model()
    train(straight, straight_adam, range(8))
    first, first_adam = model()
    train(first, first_adam, range(3))
    saved = checkpoint.adam_tensors(first_adam, names(first))
    second, second_adam = model()
    second.load_state_dict(first.state_dict())
    checkpoint.load_adam(second_adam, names(second), saved)
    train(second, second_adam, range(3, 8))
    assert torch.equal(second.weight, straight.weight) and torch.equal(second.bias, straight.bias)


def test_kill_in_mid_write_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    code = f"""
        import torch
        from pathlib import Path
        from vp3d.train import checkpoint
        n = 0
        while True:
            n += 1
            tensors = {{"field.grid": torch.full((400_000,), float(n))}}
            checkpoint.save(Path({str(tmp_path)!r}), n, tensors, {{"step": n}})
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=environment)
    try:
        for delay in (0.0, 0.013, 0.031):
            while len(checkpoint.list_checkpoints(tmp_path)) < 2 and process.poll() is None:
                time.sleep(0.01)
            time.sleep(delay)
    finally:
        process.kill()
        process.wait()
    found = checkpoint.load_latest(tmp_path, refuse)
    assert found is not None and found.meta["step"] == found.meta["iteration"] >= 2
    assert torch.equal(
        found.tensors["field.grid"], torch.full((400_000,), float(found.meta["step"]))
    )
