"""VP-SDS: its formula by hand, its limits (lambda 0, equal scales, guidance 1), and its cost.

The cost is counted in forward passes of the denoiser.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.tiny_models import tiny_prior_config
from vp3d.config.schema import GuidanceConfig, PriorConfig, Schedule, ViewGate
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.perp_neg import view_negatives
from vp3d.diffusion.prior import Prior
from vp3d.diffusion.schedule import add_noise, sample_t, x0_from_epsilon
from vp3d.errors import UserError
from vp3d.guidance.condition import Condition, build_condition
from vp3d.guidance.vp_sds import Guidance, Target, sds_loss
from vp3d.types import Camera

PROMPT, NEGATIVE = "a red cube", "blurry"
AZIMUTH = torch.tensor([0.0, 60.0, 180.0])
CAMERA = Camera(
    AZIMUTH, torch.tensor([0.0, 30.0, 10.0]), torch.full((3,), 2.9), torch.full((3,), 40.0)
)
VIEWS = ("front view", "front left view from above", "back view")
RGB = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(5))
VISUAL_PROMPT = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(6))
HALF = GuidanceConfig(
    guidance_scale=7.0,
    text_scale=5.0,
    image_scale=2.0,
    lam=Schedule(0.6, 0.6),
    t_min=Schedule(0.02, 0.02),
    t_max=Schedule(0.98, 0.5),
    weighting="sigma2",
    denoise_steps=1,
    space="latents",
    weight=1.0,
)


@pytest.fixture(scope="module")
def prior_config(tmp_path_factory: pytest.TempPathFactory) -> PriorConfig:
    return tiny_prior_config(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def prior(prior_config: PriorConfig) -> Prior:
    return load_prior(prior_config)


@pytest.fixture(scope="module")
def condition(prior: Prior) -> Condition:
    return build_condition(prior, PROMPT, NEGATIVE, VISUAL_PROMPT)


def seeded(seed: int = 11) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loss_and_grad(
    prior: Prior, config: GuidanceConfig, condition: Condition, progress: float = 0.0
) -> tuple[Tensor, Tensor]:
    rgb = RGB.clone().requires_grad_()
    losses, _ = Guidance(prior, config)(rgb, CAMERA, condition, progress, seeded())
    assert list(losses) == ["sds"] and losses["sds"].shape == ()
    return losses["sds"].detach(), torch.autograd.grad(losses["sds"], rgb)[0]


def by_hand(
    prior: Prior, e_hat: Callable[..., Tensor], lam: Tensor, weight: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The latent gradient of SDS at progress 0 and its pull-back to the images.

    One view at a time, from single calls of the denoiser.
    """
    generator = seeded()
    t = sample_t(3, 20, 980, generator)
    noise = torch.randn(3, 4, 8, 8, generator=generator)
    image, none, null = (
        prior.embed_visual_prompt(VISUAL_PROMPT),
        prior.null_image,
        prior.encode_null(NEGATIVE),
    )
    rgb = RGB.clone().requires_grad_()
    latents = prior.encode_images(rgb)
    rows = []
    for i, view in enumerate(VIEWS):
        bar, text = prior.alpha_bar[t[i]], prior.encode_text([f"{PROMPT}, {view}"])
        x_t = bar.sqrt() * latents[i : i + 1].detach() + (1 - bar).sqrt() * noise[i : i + 1]
        one = (x_t, t[i : i + 1])
        gate = lam[i : i + 1]
        branches = (
            prior.predict_noise(*one, null, none, gate),
            prior.predict_noise(*one, text, none, gate),
            prior.predict_noise(*one, text, image, gate),
        )
        rows.append(weight(bar) * (e_hat(*branches) - noise[i : i + 1]))
    grad = torch.cat(rows)
    return grad, torch.autograd.grad(latents, rgb, grad_outputs=grad)[0]


@pytest.mark.parametrize("normalize", ["sum", "mean"])
@pytest.mark.parametrize("mode", ["joint", "split"])
@pytest.mark.parametrize("weighting", ["sigma2", "uniform", "x0"])
def test_gradient_is_the_formula(
    prior: Prior, condition: Condition, normalize: str, mode: str, weighting: str
) -> None:
    gate = ViewGate(0.0, 30.0, 90.0, 0.0)  # weights 1, 0.5, 0 at the three cameras
    config = dataclasses.replace(
        HALF, normalize=normalize, mode=mode, weighting=weighting, lam_gate=gate
    )
    formulas = {
        "joint": lambda e0, ey, eyv: e0 + 7.0 * (eyv - e0),
        "split": lambda e0, ey, eyv: e0 + 5.0 * (ey - e0) + 2.0 * (eyv - ey),
    }
    weights = {"sigma2": lambda bar: 1 - bar, "uniform": torch.ones_like}
    weights["x0"] = lambda bar: ((1 - bar) / bar).sqrt().clamp(max=10.0)
    latent_grad, expected = by_hand(
        prior, formulas[mode], torch.tensor([0.6, 0.3, 0.0]), weights[weighting]
    )
    count = 3 if normalize == "sum" else latent_grad.numel()
    loss, grad = loss_and_grad(prior, config, condition)
    torch.testing.assert_close(
        grad * count, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-3
    )
    torch.testing.assert_close(loss * count, 0.5 * (latent_grad**2).sum(), rtol=1e-3, atol=0)


def test_under_x0_weights_the_step_leads_to_the_estimate(
    prior: Prior, condition: Condition
) -> None:
    latents = prior.encode_images(RGB)
    low = Schedule(0.5, 0.5)
    config = dataclasses.replace(HALF, weighting="x0", t_max=low)
    estimate = Guidance(prior, config).estimate(latents, CAMERA, condition, 0.0, seeded())
    bar = prior.alpha_bar[estimate.t]
    x0 = x0_from_epsilon(add_noise(latents, estimate.noise, bar), estimate.e_hat, bar)
    torch.testing.assert_close(latents - estimate.grad, x0, atol=1e-4, rtol=1e-4)


def test_more_denoising_steps_are_ddim_under_guidance_from_each_views_own_t(
    prior: Prior, condition: Condition
) -> None:
    config = dataclasses.replace(HALF, denoise_steps=3)
    latents = prior.encode_images(RGB)
    found = Guidance(prior, config).estimate(latents, CAMERA, condition, 0.0, seeded())
    one = Guidance(prior, HALF).estimate(latents, CAMERA, condition, 0.0, seeded())
    assert torch.equal(found.t, one.t) and torch.equal(found.noise, one.noise)
    for i, view in enumerate(VIEWS):
        text, null, t = (
            prior.encode_text([f"{PROMPT}, {view}"]),
            prior.encode_null(NEGATIVE),
            int(found.t[i]),
        )
        bar = prior.alpha_bar[t]
        x = noised = bar.sqrt() * latents[i : i + 1] + (1 - bar).sqrt() * found.noise[i : i + 1]
        for level, lower in ((t, t * 2 // 3), (t * 2 // 3, t // 3), (t // 3, None)):
            at, gate = torch.tensor([level]), torch.tensor([0.6])
            e0 = prior.predict_noise(x, at, null, prior.null_image, gate)
            eyv = prior.predict_noise(x, at, text, condition.image, gate)
            epsilon, now = e0 + 7.0 * (eyv - e0), prior.alpha_bar[level]
            x0 = (x - (1 - now).sqrt() * epsilon) / now.sqrt()
            if lower is not None:
                x = (
                    prior.alpha_bar[lower].sqrt() * x0
                    + (1 - prior.alpha_bar[lower]).sqrt() * epsilon
                )
        expected = (noised - bar.sqrt() * x0) / (1 - bar).sqrt()
        torch.testing.assert_close(found.e_hat[i : i + 1], expected, atol=2e-3, rtol=2e-3)
    assert (found.e_hat - one.e_hat).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["joint", "split"])
def test_lambda_zero_is_plain_sds_bit_for_bit(
    prior: Prior, prior_config: PriorConfig, condition: Condition, mode: str
) -> None:
    text_only = dataclasses.replace(condition, image=None)
    config = dataclasses.replace(HALF, mode=mode)
    off = dataclasses.replace(config, lam=Schedule(0.0, 0.0))
    gated_off = dataclasses.replace(config, lam_gate=ViewGate(-120.0, 10.0, 20.0, 0.0))
    expected = loss_and_grad(prior, config, text_only)
    # A UNet without an adapter.
    base = load_prior(dataclasses.replace(prior_config, ip_adapter=""))
    base_condition = build_condition(base, PROMPT, NEGATIVE, None)
    for other in (
        loss_and_grad(prior, off, condition),
        loss_and_grad(prior, gated_off, condition),
        loss_and_grad(base, config, base_condition),
    ):
        assert torch.equal(other[0], expected[0]) and torch.equal(other[1], expected[1])
    assert not torch.equal(loss_and_grad(prior, config, condition)[1], expected[1])


def test_a_view_behind_the_gate_is_plain_sds(prior: Prior, condition: Condition) -> None:
    """In a batch where the front sees the image, the back view (gate 0) has text-only guidance."""
    gated = dataclasses.replace(HALF, lam_gate=ViewGate(0.0, 45.0, 100.0, 0.0))
    latents = prior.encode_images(RGB)
    mixed = Guidance(prior, gated).estimate(latents, CAMERA, condition, 0.0, seeded())
    plain = Guidance(prior, HALF).estimate(
        latents, CAMERA, dataclasses.replace(condition, image=None), 0.0, seeded()
    )
    torch.testing.assert_close(mixed.lam, torch.tensor([0.6, 0.6 * 40 / 55, 0.0]))
    torch.testing.assert_close(mixed.e_hat[2], plain.e_hat[2], atol=1e-5, rtol=1e-4)
    assert (mixed.e_hat[:2] - plain.e_hat[:2]).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_split_with_equal_scales_is_joint(prior: Prior, condition: Condition) -> None:
    split = dataclasses.replace(HALF, mode="split", text_scale=7.0, image_scale=7.0)
    joint, same = loss_and_grad(prior, HALF, condition), loss_and_grad(prior, split, condition)
    assert torch.equal(joint[0], same[0]) and torch.equal(joint[1], same[1])


@pytest.mark.parametrize(
    ("change", "forwards"),
    [
        ({}, 2),
        ({"mode": "split"}, 3),
        ({"guidance_scale": 1.0}, 1),
        ({"mode": "split", "lam": Schedule(0.0, 0.0)}, 2),
    ],
)
def test_cost_is_one_call_of_the_needed_branches_and_no_decode(
    prior: Prior, condition: Condition, change: dict, forwards: int
) -> None:
    sizes: list[int] = []
    decodes: list[int] = []
    hooks = [
        prior.unet.conv_in.register_forward_hook(lambda _m, args, _out: sizes.append(len(args[0]))),
        prior.vae.decoder.register_forward_hook(lambda *_: decodes.append(1)),
    ]
    loss_and_grad(prior, dataclasses.replace(HALF, **change), condition)
    for hook in hooks:
        hook.remove()
    assert sizes == [3 * forwards] and decodes == []


@pytest.mark.parametrize("weighting", ["sigma2", "x0"])
@pytest.mark.parametrize("size", [16, 24])
def test_in_pixels_each_view_is_pulled_to_its_decoded_estimate(
    prior: Prior, condition: Condition, weighting: str, size: int
) -> None:
    t_max = Schedule(0.6, 0.6)
    config = dataclasses.replace(
        HALF, weighting=weighting, t_max=t_max, denoise_steps=3, space="pixels"
    )
    rgb = F.interpolate(RGB, size=(size, size)).requires_grad_()
    latents = prior.encode_images(rgb).detach()
    estimate = Guidance(prior, config).estimate(latents, CAMERA, condition, 0.0, seeded())
    expected = []
    for i in range(3):
        bar = prior.alpha_bar[estimate.t[i]]
        noised = bar.sqrt() * latents[i] + (1 - bar).sqrt() * estimate.noise[i]
        x0 = (noised - (1 - bar).sqrt() * estimate.e_hat[i]) / bar.sqrt()
        target = F.interpolate(
            prior.decode(x0[None]), size=(size, size), mode="bilinear", antialias=True
        )[0]
        share = (1.0 - bar) * (bar / (1 - bar)).sqrt() if weighting == "sigma2" else 1.0
        expected.append(share * (rgb[i] - target).detach())
    grad = torch.stack(expected)
    for normalize, count in (("sum", 3), ("mean", rgb.numel())):
        losses, _ = Guidance(prior, dataclasses.replace(config, normalize=normalize))(
            rgb, CAMERA, condition, 0.0, seeded()
        )
        found = count * torch.autograd.grad(losses["sds"], rgb)[0]
        torch.testing.assert_close(found, grad, atol=1e-3 * float(grad.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("space", ["latents", "pixels"])
def test_a_pull_acts_on_the_views_as_they_are_by_then(
    prior: Prior, condition: Condition, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guidance = Guidance(prior, dataclasses.replace(HALF, space=space, normalize="sum"))
    rgb = RGB.clone().requires_grad_()
    losses, target = guidance(rgb, CAMERA, condition, 0.0, seeded())
    (first,) = torch.autograd.grad(losses["sds"], rgb)
    monkeypatch.setattr(prior, "predict_branches", None)  # the denoiser is not called again
    (reused,) = torch.autograd.grad(guidance.reuse(rgb, target)["sds"], rgb)
    torch.testing.assert_close(reused, first, atol=1e-4 * float(first.abs().max()), rtol=1e-3)
    moved = (1.0 - RGB).requires_grad_()
    current = prior.encode_images(moved) if space == "latents" else moved
    by_hand = target.weight[:, None, None, None] * (current - target.target)
    (expected,) = torch.autograd.grad(current, moved, by_hand.detach() / len(RGB))
    (found,) = torch.autograd.grad(guidance.reuse(moved, target)["sds"], moved)
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def test_same_generator_same_result(prior: Prior, condition: Condition) -> None:
    first, again = loss_and_grad(prior, HALF, condition), loss_and_grad(prior, HALF, condition)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    state = torch.get_rng_state()
    other = Guidance(prior, HALF)(RGB, CAMERA, condition, 0.0, seeded(12))[0]["sds"]
    assert torch.equal(state, torch.get_rng_state()) and not torch.equal(other, first[0])


def test_progress_drives_noise_level_and_lambda(prior: Prior, condition: Condition) -> None:
    config = GuidanceConfig(
        t_min=Schedule(0.9, 0.1),
        t_max=Schedule(0.95, 0.15),
        lam=Schedule(1.0, 0.0),
        lam_gate=ViewGate(),
        denoise_steps=1,
    )
    guidance, latents = Guidance(prior, config), prior.encode_images(RGB)
    for progress, low, high, lam in (
        (0.0, 900, 950, 1.0),
        (0.5, 500, 550, 0.5),
        (1.0, 100, 150, 0.0),
    ):
        estimate = guidance.estimate(latents, CAMERA, condition, progress, seeded())
        assert ((low <= estimate.t) & (estimate.t <= high)).all()
        torch.testing.assert_close(estimate.lam, torch.full((3,), lam))


def test_perp_neg_takes_away_what_looks_like_another_view(
    prior: Prior, condition: Condition
) -> None:
    """Perp-Neg by hand, a view at a time: e_hat - s * sum_i w_i perp_i (arXiv 2304.04968)."""
    latents = prior.encode_images(RGB)
    found = {
        share: Guidance(prior, dataclasses.replace(HALF, perp_neg=share)).estimate(
            latents, CAMERA, condition, 0.0, seeded()
        )
        for share in (0.0, 0.8)
    }
    azimuths, weights = view_negatives(AZIMUTH)
    assert float(weights.sum()) > 0.1
    image, none, null = condition.image, prior.null_image, condition.null
    lam = torch.tensor([0.6])
    for i in range(3):
        t = found[0.0].t[i : i + 1]
        x_t = add_noise(latents[i : i + 1], found[0.0].noise[i : i + 1], prior.alpha_bar[t])
        height = CAMERA.elevation_deg[i : i + 1]
        nothing = prior.predict_noise(x_t, t, null, none, lam)
        text = condition.text_for(AZIMUTH[i : i + 1], height)
        wanted = prior.predict_noise(x_t, t, text, image, lam) - nothing
        expected = found[0.0].e_hat[i : i + 1].clone()
        for azimuth, weight in zip(azimuths[i], weights[i], strict=True):
            other = condition.text_for(azimuth[None], height)
            part = prior.predict_noise(x_t, t, other, none, lam) - nothing
            part = part - (part * wanted).sum() / (wanted * wanted).sum() * wanted
            expected -= 0.8 * 7.0 * weight * part
        torch.testing.assert_close(found[0.8].e_hat[i : i + 1], expected, rtol=1e-3, atol=1e-4)


def test_std_rescale_takes_the_spread_of_the_unguided_estimate(
    prior: Prior, condition: Condition
) -> None:
    latents = prior.encode_images(RGB)
    configs = {
        share: dataclasses.replace(HALF, guidance_scale=30.0, rescale=share)
        for share in (0.0, 0.5, 1.0)
    }
    configs[-1.0] = dataclasses.replace(HALF, guidance_scale=1.0)  # no guidance: the reference
    found = {
        s: Guidance(prior, c).estimate(latents, CAMERA, condition, 0.0, seeded())
        for s, c in configs.items()
    }
    std = {}
    for share, estimate in found.items():
        bar = prior.alpha_bar[estimate.t]
        noised = add_noise(latents, estimate.noise, bar)
        std[share] = x0_from_epsilon(noised, estimate.e_hat, bar).std(dim=(1, 2, 3))
    torch.testing.assert_close(std[1.0], std[-1.0], rtol=1e-3, atol=0)
    torch.testing.assert_close(std[0.5], 0.5 * (std[0.0] + std[1.0]), rtol=1e-3, atol=0)
    assert (std[0.0] - std[1.0]).abs().min() > 1e-3


def test_conditions_hold_every_view_word_of_the_prompt(prior: Prior, condition: Condition) -> None:
    assert len(condition.text) == 16 and condition.image.shape == (1, 4, 32)
    expected = prior.encode_text([f"{PROMPT}, {view}" for view in VIEWS])
    torch.testing.assert_close(
        condition.text_for(CAMERA.azimuth_deg, CAMERA.elevation_deg).tokens, expected.tokens
    )
    torch.testing.assert_close(condition.null.tokens, prior.encode_text([NEGATIVE]).tokens)
    everywhere = torch.arange(-360.0, 360.0, 7.5)
    assert len(condition.text_for(everywhere, everywhere / 5)) == len(everywhere)
    assert not condition.image.requires_grad and not condition.null.tokens.requires_grad


def test_works_with_autoencoder_kl_and_v_prediction(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("kl")
    prior = load_prior(tiny_prior_config(folder, vae="kl", prediction_type="v_prediction"))
    loss, grad = loss_and_grad(prior, HALF, build_condition(prior, PROMPT, NEGATIVE, VISUAL_PROMPT))
    assert loss > 0 and grad.isfinite().all() and grad.abs().sum() > 0


def test_the_gradient_of_a_target_is_a_number_without_a_graph() -> None:
    """weight * (current - target), view by view: 2 * (3 - 1) and 0.5 * (3 - 7)."""
    current = torch.full((2, 1, 1, 1), 3.0, requires_grad=True)
    target = Target(torch.tensor([1.0, 7.0]).view(2, 1, 1, 1), torch.tensor([2.0, 0.5]))
    found = target.grad(current)
    assert found.flatten().tolist() == [4.0, -2.0] and not found.requires_grad


def test_sds_loss_hand_values() -> None:
    latents, grad = (
        torch.ones(2, 1, 1, 2, requires_grad=True),
        torch.tensor([1.0, 2.0, 3.0, 4.0]).view(2, 1, 1, 2),
    )
    assert sds_loss(latents, grad, "sum").item() == pytest.approx(30 / 2 / 2)
    assert sds_loss(latents, grad, "mean").item() == pytest.approx(30 / 2 / 4)
    torch.testing.assert_close(
        torch.autograd.grad(sds_loss(latents, grad, "sum"), latents)[0], grad / 2
    )
    torch.testing.assert_close(
        torch.autograd.grad(sds_loss(latents, grad, "mean"), latents)[0], grad / 4
    )
    with pytest.raises(UserError, match="sum"):
        sds_loss(latents, grad, "median")
