"""Guidance against the formulas as they are printed."""

from __future__ import annotations

import pytest
import torch

from vp3d.diffusion.cfg import branch_weights, combine, rescale_std
from vp3d.errors import UserError

E0, EY, EYV = torch.randn(3, 2, 4, 5, 5, generator=torch.Generator().manual_seed(0)).unbind()
PREDICTIONS = {"null": E0, "text": EY, "full": EYV}


@pytest.mark.parametrize("s", [0.0, 0.5, 1.0, 7.5, 100.0])
def test_joint_is_the_formula(s: float) -> None:
    guided = combine(PREDICTIONS, branch_weights("joint", s, 3.0, 5.0, with_image=True))
    torch.testing.assert_close(guided, E0 + s * (EYV - E0), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("text", "image"), [(7.5, 2.0), (1.0, 1.0), (0.0, 3.0), (10.0, 0.0)])
def test_split_is_the_formula(text: float, image: float) -> None:
    guided = combine(PREDICTIONS, branch_weights("split", 99.0, text, image, with_image=True))
    torch.testing.assert_close(
        guided, E0 + text * (EY - E0) + image * (EYV - EY), atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("s", [1.0, 4.0, 100.0])
def test_split_with_equal_scales_is_joint(s: float) -> None:
    assert branch_weights("split", 0.0, s, s, True) == branch_weights("joint", s, 0.0, 0.0, True)


def test_guidance_one_is_plain_conditioning() -> None:
    weights = branch_weights("joint", 1.0, 0.0, 0.0, with_image=True)
    assert weights == {"full": 1.0}
    assert torch.equal(combine(PREDICTIONS, weights), EYV)
    assert branch_weights("joint", 1.0, 0.0, 0.0, with_image=False) == {"text": 1.0}


def test_only_needed_branches() -> None:
    assert list(branch_weights("joint", 7.5, 1.0, 1.0, True)) == ["null", "full"]
    assert list(branch_weights("split", 7.5, 3.0, 2.0, True)) == ["null", "text", "full"]
    assert branch_weights("split", 7.5, 3.0, 2.0, False) == {"null": -2.0, "text": 3.0}


def test_unknown_mode_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="joint"):
        branch_weights("perp", 1.0, 1.0, 1.0, True)


def test_rescale_std_full_share_takes_the_spread_of_the_reference() -> None:
    rescaled = rescale_std(5.0 * E0 + 0.3, EY, 1.0)
    for sample, reference in zip(rescaled, EY, strict=True):
        torch.testing.assert_close(sample.std(), reference.std())


def test_rescale_std_blends_and_zero_changes_nothing() -> None:
    x0 = 3.0 * E0
    assert torch.equal(rescale_std(x0, EY, 0.0), x0)
    for i in range(len(x0)):  # MVDream: share * rescaled + (1 - share) * x0
        expected = 0.3 * x0[i] * (EY[i].std() / x0[i].std()) + 0.7 * x0[i]
        torch.testing.assert_close(rescale_std(x0, EY, 0.3)[i], expected)


@pytest.mark.parametrize("weight", [1.0, 1.5, 2.0, -0.5])
def test_the_first_branch_has_its_weight_too(weight: float) -> None:
    first, second = torch.tensor([2.0, -4.0]), torch.tensor([1.0, 10.0])
    found = combine({"null": first, "full": second}, {"null": weight, "full": 3.0})
    assert found.tolist() == [2.0 * weight + 3.0, -4.0 * weight + 30.0]


def test_a_constant_estimate_has_no_spread_to_rescale() -> None:
    x0, reference = torch.zeros(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    assert torch.equal(rescale_std(x0, reference, 1.0), x0)
