from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.helpers.tiny_models import save_manifest
from vp3d.errors import DamagedFileError, UserError
from vp3d.metrics.attribute_judge import Judge, judge_loss, judge_views, load_judge, save_judge

HEADS = {"color": ["red", "green", "blue"], "place": ["left", "right"]}
SMALL = (8, 16, 16)


def pictures(count: int, seed: int, size: int = 64) -> tuple[torch.Tensor, list[dict[str, str]]]:
    """A square of one of three colours in the left or right half, on a grey background."""
    generator = torch.Generator().manual_seed(seed)
    rgb, labels = torch.full((count, 3, size, size), 0.6), []
    for picture in rgb:
        color, place, y = (
            int(torch.randint(n, (), generator=generator)) for n in (3, 2, size // 2)
        )
        x = size // 16 + place * size // 2
        picture[:, y : y + size // 3, x : x + size // 3] = torch.eye(3)[color][:, None, None]
        labels.append({"color": HEADS["color"][color], "place": HEADS["place"][place]})
    return rgb, labels


@pytest.fixture(scope="module")
def trained() -> Judge:
    torch.manual_seed(0)
    judge = Judge(HEADS, SMALL)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=6e-3)
    for step in range(25):
        rgb, labels = pictures(16, step)
        loss = judge_loss(judge(rgb), judge.targets(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return judge.eval()


def test_it_learns_what_it_is_shown(trained: Judge) -> None:
    rgb, labels = pictures(64, 999)
    named = judge_views(trained, rgb)
    assert sum(a == b for a, b in zip(named, labels, strict=True)) >= 60


def test_views_of_another_size_are_resized(trained: Judge) -> None:
    rgb, labels = pictures(16, 5, size=192)
    assert sum(a == b for a, b in zip(judge_views(trained, rgb), labels, strict=True)) >= 14


def test_folder_round_trip(trained: Judge, tmp_path: Path) -> None:
    save_judge(trained, tmp_path / "judge")
    loaded = load_judge(tmp_path / "judge")
    rgb, _ = pictures(4, 1)
    assert sorted(p.name for p in (tmp_path / "judge").iterdir()) == [
        "judge.json",
        "judge.safetensors",
    ]
    assert all(
        torch.equal(a, b) for a, b in zip(trained(rgb).values(), loaded(rgb).values(), strict=True)
    )
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_damaged_folders_are_one_clear_line(trained: Judge, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"judge\.json is missing"):
        load_judge(tmp_path)
    save_judge(trained, tmp_path)
    weights = (tmp_path / "judge.safetensors").read_bytes()
    (tmp_path / "judge.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="damaged"):
        load_judge(tmp_path)
    (tmp_path / "judge.safetensors").write_bytes(weights)
    (tmp_path / "judge.json").write_text(
        json.dumps({"widths": list(SMALL), "heads": {"color": ["red"]}})
    )
    with pytest.raises(UserError, match="does not fit"):
        load_judge(tmp_path)
    wrong = [[], {"../x": ["red"]}, {"": ["red"]}, {"pop": ["red"]}, {"training": ["red"]}]
    for heads in wrong:  # torch has no module of such a name
        (tmp_path / "judge.json").write_text(json.dumps({"widths": list(SMALL), "heads": heads}))
        with pytest.raises(UserError, match="does not describe a judge"):
            load_judge(tmp_path)
    (tmp_path / "judge.safetensors").unlink()
    (tmp_path / "judge.json").write_text(json.dumps({"widths": list(SMALL), "heads": HEADS}))
    with pytest.raises(UserError, match="is missing"):
        load_judge(tmp_path)


def test_weights_other_than_the_manifests_are_refused(trained: Judge, tmp_path: Path) -> None:
    save_judge(trained, tmp_path / "judge")
    manifest = save_manifest(tmp_path)
    assert load_judge(tmp_path / "judge", manifest).values == HEADS
    save_judge(Judge(HEADS, SMALL), tmp_path / "judge")
    with pytest.raises(UserError, match=r"judge\.safetensors is damaged or was changed"):
        load_judge(tmp_path / "judge", manifest)


def test_loss_is_the_sum_of_masked_means() -> None:
    judge = Judge(HEADS, SMALL)
    rgb, labels = pictures(6, 2)
    logits, targets = judge(rgb), judge.targets(labels)
    naive = sum(F.cross_entropy(logits[name], targets[name]) for name in HEADS)
    assert torch.allclose(judge_loss(logits, targets), naive)
    visible = {"color": torch.tensor([1, 1, 0, 0, 0, 0]), "place": torch.zeros(6)}
    assert torch.allclose(
        judge_loss(logits, targets, visible),
        F.cross_entropy(logits["color"][:2], targets["color"][:2]),
    )


def test_every_parameter_gets_a_finite_gradient_and_the_mode_is_kept() -> None:
    judge = Judge(HEADS).train()
    rgb, labels = pictures(2, 3)
    judge_loss(judge(rgb), judge.targets(labels)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in judge.parameters())
    before = judge.norm.running_mean.clone()
    judge_views(judge, rgb)
    assert judge.training and torch.equal(before, judge.norm.running_mean)
    with pytest.raises(ValueError, match="judge_views resizes"):
        judge(torch.rand(1, 3, 32, 32))


def test_a_judge_of_larger_pictures_keeps_its_size(tmp_path: Path) -> None:
    save_judge(Judge(HEADS, SMALL, 128), tmp_path / "large")
    save_judge(Judge(HEADS, SMALL), tmp_path / "small")
    assert "size" not in json.loads((tmp_path / "small" / "judge.json").read_text())
    large, small = (load_judge(tmp_path / name) for name in ("large", "small"))
    assert (large.size, small.size) == (128, 64)
    assert len(judge_views(large, torch.rand(1, 3, 96, 96))) == 1
    with pytest.raises(ValueError, match=r"takes rgb \[B, 3, 128, 128\]"):
        large.features(torch.zeros(1, 3, 64, 64))
    text = (tmp_path / "large" / "judge.json").read_text().replace("128", "100")
    (tmp_path / "large" / "judge.json").write_text(text)
    with pytest.raises(DamagedFileError, match="does not describe a judge"):
        load_judge(tmp_path / "large")
