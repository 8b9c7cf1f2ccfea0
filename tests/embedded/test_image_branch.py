"""The image branch trained from scratch: its tokens act like the caption, only it is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from vp3d.config import paths
from vp3d.config.schema import PriorConfig
from vp3d.diffusion.load import load_prior
from vp3d.embedded import architectures, image_branch, prior_training, train
from vp3d.embedded.denoising import PriorLosses
from vp3d.embedded.fit import Plan
from vp3d.embedded.image_branch import (
    AdapterLosses,
    copy_text_projections,
    train_image_tokens,
)
from vp3d.embedded.latent_reader import LatentReader, read_targets
from vp3d.worlds.toybox.data import Pictures, draw_specs, make_pictures, to_tensor
from vp3d.worlds.toybox.scenes import words

TOKENIZER = architectures.load_tokenizer(paths.ASSETS / "pipeline" / "tokenizer", words())


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    rng = np.random.default_rng(0)
    return make_pictures(draw_specs(rng, 8, reserved=False), 3, rng)


@pytest.fixture
def model() -> nn.ModuleDict:
    return nn.ModuleDict(prior_training.new_prior_parts(TOKENIZER, trained=True))


def losses(model: nn.ModuleDict, pictures: Pictures, **options: Any) -> PriorLosses:
    """Of few pictures; the reader is a random one."""
    latents = (
        load_prior(PriorConfig(dtype="float32")).encode_images(to_tensor(pictures.images)).half()
    )
    reader = LatentReader().requires_grad_(False)
    return PriorLosses(
        model, TOKENIZER, pictures, latents, read_targets(pictures), reader, batch=4, **options
    )


def embedded(model: nn.ModuleDict, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return model["text"](architectures.tokenize(TOKENIZER, texts))[0]


def test_a_captions_tokens_in_the_image_branch_are_heard_like_the_caption(
    model: nn.ModuleDict, pictures: Pictures
) -> None:
    nothing = embedded(model, [""])
    said = embedded(
        model, [f"{pictures.caption(i)}, {pictures.view(i)}" for i in range(len(pictures))]
    )
    copy_text_projections(model["unet"], nothing[0], said.flatten(0, 1))
    hidden = torch.randn(2, 64, 96, generator=torch.Generator().manual_seed(0))
    attention = model.get_submodule("unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2")
    with torch.no_grad():
        caption, empty = attention(hidden, said[:2]), attention(hidden, nothing.expand(2, -1, -1))
        shown = attention(hidden, (nothing.expand(2, -1, -1), said[:2], torch.ones(2)))
    assert (shown - caption).norm() < 0.15 * (empty - caption).norm()


def test_teaching_brings_the_tokens_near_the_captions_and_leaves_text_and_denoiser(
    model: nn.ModuleDict, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_branch, "WARMUP", 1)
    monkeypatch.setattr(image_branch, "BATCH", 16)
    nn.init.normal_(
        model.get_parameter("projection.latents")
    )  # forget what the committed tokens contain
    before = {k: v.clone() for k, v in model.state_dict().items()}
    said = embedded(
        model, [f"{pictures.caption(i)}, {pictures.view(i)}" for i in range(len(pictures))]
    )

    def error() -> float:
        with torch.no_grad():
            tokens = model["projection"](
                architectures.patches(
                    architectures.vision_outputs(model["vision_tower"], to_tensor(pictures.images))
                )
            )
        return float((tokens - said).square().mean())

    first = error()
    train_image_tokens(
        losses(model, pictures), replace(train.PLANS["adapter"], steps=24, ema_share=0.0), tmp_path
    )
    assert error() < 0.9 * first
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(
        k.startswith(prior_training.ADAPTER_PARAMETERS) or "_ip." in k for k in moved
    )
    layer = model.get_submodule("unet.up_blocks.0.attentions.0.transformer_blocks.0.attn2")
    assert torch.equal(layer.processor.to_k_ip.weight, layer.to_k.weight)


def test_what_is_heard_otherwise_than_the_caption_reaches_every_part_of_the_branch(
    model: nn.ModuleDict, pictures: Pictures
) -> None:
    model.requires_grad_(False)
    taught = {
        k: p
        for k, p in model.named_parameters()
        if (k.startswith(prior_training.ADAPTER_PARAMETERS) and "aid_" not in k) or "_ip." in k
    }
    for parameter in taught.values():
        parameter.requires_grad_(True)
    alone, told = ((0.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0))
    values = AdapterLosses(losses(model, pictures, shares=alone))(
        np.random.default_rng(1), torch.Generator().manual_seed(1)
    )
    values["loss_attention"].backward()
    unread = (
        "vision_tower.vision_model.encoder.layers.5.",
        "vision_tower.vision_model.post_layernorm",
        "vision_tower.visual_projection",
    )
    silent = [
        k
        for k, p in taught.items()
        if not k.startswith(unread) and (p.grad is None or not p.grad.abs().sum() > 0.0)
    ]
    assert not silent
    values = AdapterLosses(losses(model, pictures, shares=told))(
        np.random.default_rng(1), torch.Generator().manual_seed(1)
    )
    assert "loss_v" in values and "loss_attention" not in values


def test_the_adapter_is_begun_anew_only_without_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pictures: Pictures
) -> None:
    class Begun(Exception):
        pass

    def begin(*_: object) -> None:
        raise Begun

    monkeypatch.setattr(prior_training, "train_image_tokens", begin)
    monkeypatch.setattr(prior_training, "prior_losses", lambda *_, **__: None)
    monkeypatch.setattr(prior_training, "fit", lambda *_: (_ for _ in ()).throw(KeyError))
    monkeypatch.setattr(prior_training, "AdapterLosses", Mock(PRIOR_OPTIONS={}))
    plan = Plan(steps=1, lr=1e-3)
    with pytest.raises(Begun):
        prior_training.train_adapter(pictures, plan, tmp_path, "cpu")
    with pytest.raises(KeyError):
        prior_training.train_adapter(pictures, replace(plan, seed=1), tmp_path, "cpu")
