"""What the denoiser learns from: drawings of its own are those of `Prior.sample`, and their errors
reach every part.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from vp3d.config import paths
from vp3d.config.schema import PriorConfig
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.prior import Prior
from vp3d.embedded import architectures, denoising, prior_training
from vp3d.embedded.denoising import AlignLosses, PriorLosses, distance
from vp3d.embedded.latent_reader import READER_HEADS, LatentReader, read_targets
from vp3d.worlds.toybox.data import draw_specs, make_pictures, to_tensor
from vp3d.worlds.toybox.scenes import words


class Still(np.random.Generator):
    """Draws nothing but zeros."""

    def random(self, size: int) -> np.ndarray:  # type: ignore[override]
        return np.zeros(size)


@pytest.fixture(scope="module")
def prior() -> Prior:
    return load_prior(PriorConfig(dtype="float32"))


@pytest.fixture(scope="module")
def losses(prior: Prior) -> AlignLosses:
    """Of the committed weights and few pictures; the reader is a random one."""
    rng = np.random.default_rng(0)
    pictures = make_pictures(draw_specs(rng, 24, reserved=False), 3, rng)
    latents = prior.encode_images(to_tensor(pictures.images)).half()
    torch.manual_seed(0)
    tokenizer = architectures.load_tokenizer(paths.ASSETS / "pipeline" / "tokenizer", words())
    parts = prior_training.new_prior_parts(tokenizer, trained=True)
    model = torch.nn.ModuleDict(
        {k: parts[k] for k in ("unet", "text", "projection", "vision_tower")}
    )
    reader = LatentReader().requires_grad_(False)
    for head in (*reader.aid.heads.values(), *reader.view.heads.values()):
        torch.nn.init.normal_(head.weight, std=0.1)
    return AlignLosses(
        PriorLosses(model, tokenizer, pictures, latents, read_targets(pictures), reader, batch=4)
    )


def test_a_drawing_is_that_of_the_sampler_without_guidance(
    losses: AlignLosses, prior: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoising, "half_precision", lambda _: nullcontext())
    texts = ["a red cube, front view", "a blue chair, side view"]
    gate, tokens = (
        torch.zeros(2),
        losses.prior.model["projection"](losses.prior.null_patches()).expand(2, -1, -1),
    )
    with torch.no_grad():
        condition = (losses.prior.encode(texts), tokens, gate)
        latents = losses.draw(condition, Still(np.random.PCG64()), torch.Generator().manual_seed(5))
    theirs = prior.sample(texts, "", losses.STEPS, 1.0, torch.Generator().manual_seed(5))
    assert float((prior.decode(latents) - theirs).abs().max()) < 2e-3


def test_the_times_of_a_drawing_are_jittered_within_the_steps_and_fall(losses: AlignLosses) -> None:
    called: list[int] = []
    unet = losses.prior.model["unet"]
    hook = unet.register_forward_pre_hook(lambda _, given: called.append(int(given[1])))
    condition = tuple(
        torch.zeros(1, *shape) for shape in ((20, 128), (architectures.IMAGE_TOKENS, 128), ())
    )
    with torch.no_grad():
        for seed in range(3):
            losses.draw(condition, np.random.default_rng(seed), torch.Generator().manual_seed(0))
    hook.remove()
    runs = [called[i : i + losses.STEPS] for i in range(0, len(called), losses.STEPS)]
    assert all(run[0] == 999 and run == sorted(run, reverse=True) and run[-1] >= 0 for run in runs)
    assert len({run[2] for run in runs}) == 3 and all(500 <= run[2] <= 667 for run in runs)


def test_what_is_wrong_with_a_drawing_reaches_text_denoiser_image_branch_and_eye(
    losses: AlignLosses,
) -> None:
    values = losses(np.random.default_rng(3), torch.Generator().manual_seed(3))
    assert set(values) == {"loss_v", "loss_read", "loss_drawn", "loss_energy"}
    assert all(torch.isfinite(v) for v in values.values())
    for name in ("loss_drawn", "loss_energy"):
        losses.prior.model.zero_grad()
        values[name].backward(retain_graph=True)
        for part in ("unet", "text", "projection", "vision_tower"):
            reached = [
                p.grad.norm() for p in losses.prior.model[part].parameters() if p.grad is not None
            ]
            assert reached and float(torch.stack(reached).norm()) > 0, (name, part)
    assert all(p.grad is None for p in losses.prior.reader.parameters())


def test_only_what_the_condition_tells_is_asked(losses: AlignLosses) -> None:
    prior = losses.prior
    truth = read_targets(prior.pictures)
    conditions = prior.draw_conditions(
        np.random.default_rng(1), 64, np.cumsum((0.4, 0.2, 0.2, 0.2))
    )
    asked = conditions.targets >= 0
    assert not asked[conditions.kind == 1].any() and asked[conditions.kind != 1].any()
    assert torch.equal(conditions.targets[asked], truth[conditions.index][asked])
    silent = (conditions.kind == 3) & (
        conditions.targets[:, list(READER_HEADS).index("view")].numpy() < 0
    )
    assert silent.any(), "the view is asked for only where words tell it"
    assert torch.equal(conditions.inputs[2] > 0, torch.from_numpy(conditions.kind >= 2))


def test_the_image_is_the_picture_itself_or_where_words_tell_the_view_often_another_of_the_scene(
    losses: AlignLosses,
) -> None:
    prior = losses.prior
    index, kind = np.arange(72), np.tile([0, 2, 3], 24)
    views = len(prior.pictures) // len(prior.pictures.specs)
    silent, told = np.zeros(72, bool), np.ones(72, bool)
    assert np.array_equal(
        prior._image_index(index, kind, silent, np.random.default_rng(0)),
        np.where(kind > 1, index, -1),
    )
    shown = prior._image_index(index, kind, told, np.random.default_rng(0))
    image = kind > 1
    assert (
        np.array_equal(shown[image] // views, index[image] // views) and (shown[~image] == -1).all()
    )
    assert 0.3 < np.mean(shown[image] != index[image]) < 0.7, (
        "three in four, of three views of which one is the same"
    )
    truth = read_targets(prior.pictures)
    with_words = prior.draw_conditions(
        np.random.default_rng(1), 64, np.cumsum((0.4, 0.2, 0.2, 0.2))
    )
    seen = torch.from_numpy(with_words.kind > 1)
    assert (with_words.image_targets[~seen] == -100).all() and (
        with_words.image_targets[seen] >= 0
    ).any()
    alone = torch.from_numpy(with_words.kind == 3) & (with_words.targets[:, -1] < 0)
    assert torch.equal(with_words.image_targets[alone], truth[with_words.index][alone])


def test_the_energy_score_is_least_where_drawings_are_distributed_as_the_truth() -> None:
    generator = torch.Generator().manual_seed(0)

    def energy(mean: float, std: float) -> float:
        first, second, true = torch.randn(3, 20_000, 1, 1, 2, generator=generator)
        first, second = (mean + std * x for x in (first, second))
        return float(
            (distance(first, true) + distance(second, true) - distance(first, second)).mean()
        )

    right = energy(0.0, 1.0)
    assert (
        right < min(energy(0.0, 0.0), energy(0.0, 0.5), energy(0.0, 2.0), energy(1.0, 1.0)) - 0.01
    )
