"""Rewards and their scale."""

from __future__ import annotations

import pytest
import torch

from vp3d.align import framing
from vp3d.align.compress import jpeg_size, rate
from vp3d.align.objectives import (
    Objective,
    check_gradient,
    combined,
    on_scale,
    parse_rewards,
    score_all,
)
from vp3d.config.schema import RewardsConfig
from vp3d.errors import UserError
from vp3d.tuning.rewards import build_objectives, import_score


def pictures(shift: int = 0, side: int = 28) -> torch.Tensor:
    """A dark square on grey [1, 3, 64, 64]."""
    rgb = torch.full((1, 3, 64, 64), 0.7)
    top = (64 - side) // 2
    rgb[..., top : top + side, max(top + shift, 0) : top + shift + side] = 0.1
    return rgb


def test_rewards_are_parsed_with_weights_and_functions() -> None:
    assert parse_rewards("clip,compress:0.3") == [("clip", 1.0), ("compress", 0.3)]
    assert parse_rewards("m:f, a.b:g:-2") == [("m:f", 1.0), ("a.b:g", -2.0)]
    for wrong in ("", "clip:0", "clip:nan", "clip,clip", ",", "clip:inf"):
        with pytest.raises(UserError, match="--reward"):
            parse_rewards(wrong)


def test_weights_act_on_the_scale_of_the_base() -> None:
    rgb = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean = Objective("mean", lambda x, _: x.mean((1, 2, 3)) * 1000.0, 2.0)
    (scaled,) = on_scale([mean], rgb, ["p"] * 16)
    total = combined([scaled], score_all([scaled], rgb, ["p"] * 16))
    assert abs(float(total.mean())) < 1e-3
    assert abs(float(total.std()) - 2.0) < 1e-3


def test_reward_beyond_its_hinge_has_no_gradient() -> None:
    values = torch.tensor([1.0, 3.0], requires_grad=True)
    one = Objective("x", lambda x, _: x, 1.0, hinge=2.0)
    combined([one], {"x": values}).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [1.0, 0.0]


def test_the_hinge_of_a_negative_weight_is_below_the_mean() -> None:
    values = torch.tensor([-3.0, -1.0, 3.0], requires_grad=True)
    one = Objective("x", lambda x, _: x, -2.0, hinge=2.0)
    total = combined([one], {"x": values})
    assert total.tolist() == [4.0, 2.0, -6.0]
    total.sum().backward()
    assert values.grad is not None and values.grad.tolist() == [0.0, -2.0, -2.0]


def test_numbers_of_any_type_are_taken_and_others_refused() -> None:
    rgb = torch.rand(3, 3, 8, 8)
    for values in (torch.arange(3), torch.tensor([True, False, True]), torch.rand(3).half()):
        found = score_all([Objective("own", lambda x, _, v=values: v)], rgb, ["p"] * 3)["own"]
        assert found.is_floating_point() and found.tolist() == values.float().tolist()
    for wrong in (torch.zeros(3, dtype=torch.complex64), torch.zeros(3, device="meta")):
        with pytest.raises(UserError, match="returned numbers of type"):
            score_all([Objective("own", lambda x, _, v=wrong: v)], rgb, ["p"] * 3)


def test_a_function_that_fails_is_named_and_lack_of_memory_is_passed_on() -> None:
    rgb = torch.rand(2, 3, 8, 8)
    with pytest.raises(UserError, match="test_objectives:fails failed .*KeyError: 'no such"):
        import_score("tests.align.test_objectives:fails")(rgb, ["p"] * 2)
    with pytest.raises(MemoryError):
        import_score("tests.align.test_objectives:large")(rgb, ["p"] * 2)
    for name in ("../x:f", "os.path:sep", "no_such:f"):
        with pytest.raises(UserError, match="--reward"):
            import_score(name)


def fails(rgb: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    raise KeyError("no such colour")


def large(rgb: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    raise MemoryError


def test_bad_rewards_end_in_a_line() -> None:
    rgb = torch.rand(4, 3, 8, 8)
    flat = Objective("flat", lambda x, _: torch.ones(len(x)))
    broken = Objective("broken", lambda x, _: x.mean((1, 2, 3)) * float("nan"))
    shaped = Objective("shaped", lambda x, _: x.mean())
    for one, words in (
        (flat, "nothing to learn"),
        (broken, "finite"),
        (shaped, "returns a tensor"),
    ):
        with pytest.raises(UserError, match=words):
            on_scale([one], rgb, ["p"] * 4)
    with pytest.raises(UserError, match="no gradient"):
        check_gradient([Objective("jpeg", lambda x, _: x, differentiable=False)], "refl")
    for name in ("nothing", "no.module:f", "math:pi"):
        with pytest.raises(UserError):
            build_objectives(name, RewardsConfig(), "", torch.device("cpu"))


def test_own_function_is_found_with_its_gradient() -> None:
    name = "tests.align.test_objectives:"
    with_gradient, without = build_objectives(
        f"{name}brightness,{name}count", RewardsConfig(), "", torch.device("cpu")
    )
    assert with_gradient.differentiable and not without.differentiable


def brightness(rgb: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return rgb.mean((1, 2, 3))


def count(rgb: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return (rgb > 0.5).float().mean((1, 2, 3))


def test_rate_orders_pictures_as_the_true_size_does() -> None:
    generator = torch.Generator().manual_seed(0)
    base = pictures().expand(5, -1, -1, -1)
    noise = torch.randn(base.shape, generator=generator)
    rgb = (base + noise * torch.tensor([0.0, 0.02, 0.05, 0.1, 0.2])[:, None, None, None]).clamp(
        0, 1
    )
    rgb.requires_grad_()
    soft, true = rate(rgb), jpeg_size(rgb)
    assert torch.equal(soft.argsort(), true.argsort())
    soft.sum().backward()
    assert rgb.grad is not None and bool(rgb.grad.isfinite().all())
    assert float(jpeg_size(torch.full((1, 3, 64, 64), 0.5))) == pytest.approx(0.0, abs=0.02)
    assert float(rate(torch.full((1, 3, 64, 64), 0.5))) == pytest.approx(0.0, abs=1e-4)


def test_framing_prefers_a_whole_centred_object() -> None:
    good, off, cut = pictures(side=44), pictures(9, 44), pictures(20, 44)
    assert float(framing.whole(good)) == 1.0 > float(framing.whole(cut))
    assert float(framing.centred(good)) > float(framing.centred(off)) > float(framing.centred(cut))
    assert float(framing.filled(good)) == 1.0 > float(framing.filled(pictures(side=12)))
    assert float(framing.steady(good)) > 0.9
    assert float(framing.plain(good)) > 0.99
    assert float(framing.soft_framing(good)) > float(framing.soft_framing(off))
    assert float(framing.soft_framing(off)) > float(framing.soft_framing(cut))


def test_objects_are_counted() -> None:
    two = torch.full((1, 3, 64, 64), 0.7)
    two[..., 20:40, 8:24] = 0.1
    two[..., 20:40, 40:56] = 0.1
    both = torch.cat([pictures(), two, torch.full((1, 3, 64, 64), 0.7)])
    assert framing.objects(both).tolist() == [1.0, 2.0, 0.0]
