"""The reader of latents: it learns to name, rows without an answer do not count, and its loss
reaches the latents.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vp3d.config.schema import PriorConfig
from vp3d.diffusion.load import load_prior
from vp3d.embedded import latent_reader
from vp3d.worlds.toybox.data import HEADS, draw_specs, make_pictures, noun_maps, to_tensor
from vp3d.worlds.toybox.scenes import kind_of


@pytest.fixture(scope="module")
def taught(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[latent_reader.LatentReader, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A reader of few pictures, their latents, noun maps and answers."""
    rng = np.random.default_rng(0)
    pictures = make_pictures(draw_specs(rng, 48, reserved=False), 2, rng)
    with torch.no_grad():
        latents = load_prior(PriorConfig()).encode_images(to_tensor(pictures.images))
    targets = latent_reader.read_targets(pictures)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_reader, "PLAN", replace(latent_reader.PLAN, warmup=5))
        patch.setattr(latent_reader, "BATCH", 32)
        found = latent_reader.train_reader(
            pictures, latents, targets, tmp_path_factory.mktemp("work"), "cpu", most_steps=60
        )
    return found, latents, noun_maps(pictures, np.arange(len(pictures))), targets


def test_the_reader_knows_right_from_wrong(
    taught: tuple[latent_reader.LatentReader, *tuple[torch.Tensor, ...]],
) -> None:
    network, latents, shares, targets = taught
    with torch.no_grad():
        right, wrong = (
            float(network(latents, shares, targets)),
            float(network(latents, shares.roll(2, 0), targets.roll(2, 0))),
        )
        untaught = float(latent_reader.LatentReader()(latents, shares, targets))
    assert right < 0.7 * untaught and right < 0.7 * wrong, (right, untaught, wrong)


def test_pictures_without_an_answer_do_not_count(
    taught: tuple[latent_reader.LatentReader, *tuple[torch.Tensor, ...]],
) -> None:
    network, latents, shares, targets = taught
    asked = torch.arange(len(latents)) < 20
    silent = network(
        latents,
        shares * asked[:, None, None, None],
        targets.where(asked[:, None], torch.tensor(-100)),
    )
    assert torch.allclose(silent, network(latents[:20], shares[:20], targets[:20]), atol=1e-5)


def test_an_attribute_that_no_picture_of_the_batch_tells_costs_nothing(
    taught: tuple[latent_reader.LatentReader, *tuple[torch.Tensor, ...]],
) -> None:
    network, latents, _, targets = taught
    whole, silent = network.whole(network.body(latents)), targets.clone()
    silent[:, [0, -1]] = -100
    heads = len(HEADS)
    assert float(network.attribute_loss(whole, torch.full_like(targets, -100))) == 0.0
    lost = network.attribute_loss(whole, targets) - network.attribute_loss(whole, silent)
    first = torch.nn.functional.cross_entropy(
        network.aid.heads["object_a"](whole), targets[:, 0], ignore_index=-100
    )
    view = torch.nn.functional.cross_entropy(network.view.heads["view"](whole), targets[:, -1])
    assert torch.allclose(lost, first / heads + 0.5 * view, rtol=1e-4)


def test_the_reader_is_frozen_and_its_loss_reaches_the_latents(
    taught: tuple[latent_reader.LatentReader, *tuple[torch.Tensor, ...]],
) -> None:
    network, latents, shares, targets = taught
    latents = latents[:8].clone().requires_grad_()
    network(latents, shares[:8], targets[:8]).backward()
    assert latents.grad is not None and float(latents.grad.abs().max()) > 0
    assert not any(p.requires_grad for p in network.parameters())


def test_kinds_are_drawn_as_often_as_asked() -> None:
    rng = np.random.default_rng(1)
    pictures = make_pictures(draw_specs(rng, 200, reserved=False), 2, rng)
    kinds = np.array([kind_of(s) for s in pictures.specs])[pictures.scene_of]
    often = {"on": 6.0, "checks": 0.5}
    index = np.searchsorted(pictures.quantiles(often), rng.random(40_000), side="right")
    weights = np.array([often.get(k, 1.0) for k in kinds])
    for kind in ("on", "checks", "part"):
        assert (kinds[index] == kind).mean() == pytest.approx(
            weights[kinds == kind].sum() / weights.sum(), abs=0.02
        )
