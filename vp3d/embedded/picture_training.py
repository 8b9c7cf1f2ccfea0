"""Training of the embedded models that need no denoiser.

These are the autoencoder, the CLIP of the rewards, the judge and the IP-Adapter's vision tower.
Each function trains one part and writes it to the folder `models`; its arguments are the training
pictures, the plan, the folder of the part's checkpoints, the device and `models`. A plan with a
seed other than 0 continues from the weights in `models`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vp3d.config.paths import ASSETS
from vp3d.embedded import architectures
from vp3d.embedded.fit import (
    Plan,
    first_process_first,
    fit,
    half_precision,
    process_rank,
    use_ema,
)
from vp3d.embedded.save import save_clip
from vp3d.metrics.attribute_judge import SIZE, WIDTHS, Judge, save_judge
from vp3d.system.files import atomic_write, sha256_file
from vp3d.worlds.base import LATENT_CHANNELS, TrainingPictures
from vp3d.worlds.toybox.data import augment, to_tensor

VAE = Path("pipeline", "vae")  # in the folder of the models
VISION_TOWER = Path("ip_adapter", "models", "image_encoder")
MEASURING_SEED = 7000  # of the CLIP that measures; that of the rewards has 0
JUDGE_SEEDS, TOWER_SEEDS = (4242, 900), (8000, 8000)  # of the initial weights, of the batches
LATENTS = "latents.safetensors"


def train_autoencoder(
    pictures: TrainingPictures, plan: Plan, work: Path, device: str, models: Path = ASSETS
) -> None:
    """Train the AutoencoderTiny; the loss is L1 + 2 L2 on pixels in [-1, 1].

    It sees crops of half the side near the middle, where the objects are. At the end the latents
    are normalised (`whiten`) and the decoder is trained a little longer.

    Args:
        pictures: the training pictures.
        plan: the plan.
        work: folder of the checkpoint.
        device: where it is trained.
        models: folder of the models.
    """
    model = architectures.new_autoencoder().to(device, memory_format=torch.channels_last)
    folder, start = models / VAE, pictures.world.start
    if folder.exists() and plan.seed:
        model.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    elif start is not None:
        model.load_state_dict(load_file(start / VAE / "diffusion_pytorch_model.safetensors"))
    crop = pictures.world.sizes.resolution // 2

    def losses(rng: np.random.Generator, _: torch.Generator) -> dict[str, Tensor]:
        index = rng.integers(len(pictures), size=plan.batch)
        # the sum of two draws is most often near the middle
        most = crop // 2 + 1
        corners = rng.integers(0, most, (plan.batch, 2)) + rng.integers(0, most, (plan.batch, 2))
        crops = [
            picture[y : y + crop, x : x + crop]
            for picture, (y, x) in zip(pictures.images[index], corners, strict=True)
        ]
        target = (to_tensor(np.stack(crops), device) * 2.0 - 1.0).contiguous(
            memory_format=torch.channels_last
        )
        with half_precision(target.device) if start else nullcontext():
            latents = model.encoder(target)
            decoded = model.decoder(latents)
        latents, error = latents.float(), decoded.float() - target
        return {
            "loss_l1": error.abs().mean(),
            "loss_l2": 2.0 * error.square().mean(),
            "loss_latents": 1e-4 * latents.square().mean(),
            "psnr": -10.0 * torch.log10(error.detach().square().mean() / 4.0),
        }

    use_ema(model, fit("autoencoder", model, losses, plan, work))
    whiten(model, to_tensor(pictures.images[:1024], device) * 2.0 - 1.0)
    model.encoder.requires_grad_(False)
    polish = replace(plan, steps=max(plan.steps // 10, 1), lr=plan.lr / 4, seed=plan.seed + 1)
    use_ema(model, fit("decoder", model, losses, polish, work))
    if not process_rank():
        model.to("cpu", memory_format=torch.contiguous_format).save_pretrained(folder)


@torch.no_grad()
def whiten(model: architectures.AutoencoderTiny, rgb: Tensor, std: float = 0.5) -> None:
    """Shift and scale the latents of rgb [N, 3, H, W] in [-1, 1] to mean 0 and `std`, in place.

    Each channel is normalised by changing the encoder's last and the decoder's first convolution.
    Only the decoder's soft clamp (tanh) and its border do not commute with the change; a short
    training of the decoder corrects that. `scaling_factor` then gives unit variance.
    """
    latents = model.encoder(rgb)
    mean, scale = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) / std
    last, first = model.encoder.layers[-1], model.decoder.layers[0]
    first.bias.add_((first.weight * mean[None, :, None, None]).sum((1, 2, 3)))
    first.weight.mul_(scale[None, :, None, None])
    last.weight.div_(scale[:, None, None, None])
    last.bias.sub_(mean).div_(scale)
    model.register_to_config(scaling_factor=1.0 / std)


def train_clip(
    pictures: TrainingPictures, plan: Plan, work: Path, device: str, models: Path = ASSETS
) -> None:
    """Train the CLIP of the rewards, `clip`.

    Args:
        pictures: the training pictures.
        plan: the plan.
        work: folder of the checkpoint.
        device: where it is trained.
        models: folder of the models.
    """
    _train_clip("clip", pictures, plan, work, device, models)


def train_measuring_clip(
    pictures: TrainingPictures, plan: Plan, work: Path, device: str, models: Path = ASSETS
) -> None:
    """Train `measuring_clip`, which measures R-precision and never optimises.

    Its initial weights, batches and augmentations differ from those of `clip`. `train.py` also
    gives it pictures that no other model is trained on.

    Args:
        pictures: the training pictures.
        plan: the plan.
        work: folder of the checkpoint.
        device: where it is trained.
        models: folder of the models.
    """
    _train_clip("measuring_clip", pictures, plan, work, device, models, MEASURING_SEED)


def _train_clip(
    name: str,
    pictures: TrainingPictures,
    plan: Plan,
    work: Path,
    device: str,
    models: Path,
    first_seed: int = 0,
) -> None:
    """Contrast pictures with captions and with nearly right ones; write the model to models/name.

    Nearly right captions are those of `pictures.confused`. Auxiliary heads predict the attributes.

    Args:
        name: folder in `models` and name of the checkpoint.
        pictures: the training pictures.
        plan: the plan; with a seed other than 0 it continues from the weights in `models`.
        work: folder of the checkpoint.
        device: where it is trained.
        models: folder of the models.
        first_seed: added to the seed of the plan.
    """
    world = pictures.world
    tokenizer = architectures.load_tokenizer(models / name, world.words)
    torch.manual_seed(plan.seed + first_seed)
    model = architectures.new_clip(tokenizer, world.sizes)
    if plan.seed:
        weights = load_file(models / name / "open_clip_model.safetensors")
        model.load_state_dict(weights, strict=False)
    heads = nn.ModuleDict(
        {k: architectures.AttributeHeads(128, world.heads) for k in ("image", "text")}
    )
    both = nn.ModuleDict({"clip": model, "aids": heads}).to(device).train()
    answers = torch.from_numpy(pictures.visible_targets())

    def losses(rng: np.random.Generator, _: torch.Generator) -> dict[str, Tensor]:
        index = rng.choice(len(pictures), plan.batch, replace=False)
        views = [f", {pictures.view(i)}" if rng.random() < 0.4 else "" for i in index]
        texts = [pictures.caption(int(i)) + v for i, v in zip(index, views, strict=True)]
        texts += [pictures.confused(int(i), rng) + v for i, v in zip(index, views, strict=True)]
        rgb = augment(to_tensor(pictures.images[index], device), rng, strength=0.5)
        image = model.encode_image((rgb - 0.5) / 0.25)
        text = model.encode_text(architectures.tokenize(tokenizer, texts).to(device))
        scale = model.logit_scale.exp().clamp(max=100.0)
        logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        logits = logits.masked_fill(_equal_captions(texts, device), -1e4)
        right = torch.arange(plan.batch, device=device)
        image_targets, text_targets = (
            answers[index].to(device),
            pictures.stated_targets(index).to(device),
        )
        attributes = heads["image"](image, image_targets)
        return {
            "loss_image_text": F.cross_entropy(logits, right),
            "loss_text_image": F.cross_entropy(logits[:, : plan.batch].T, right),
            "loss_attributes": attributes + heads["text"](text[: plan.batch], text_targets),
            "top1": (logits.argmax(1) == right).float().mean(),
        }

    plan = replace(plan, seed=plan.seed + first_seed)
    use_ema(both, fit(name, both, losses, plan, work))
    _recompute_batch_norm(
        model.visual, pictures, lambda rgb: model.encode_image((rgb - 0.5) / 0.25), device
    )
    if not process_rank():
        dtype = torch.float16 if first_seed else torch.float32
        save_clip(model.eval().cpu(), tokenizer, models / name, world, dtype)


def _equal_captions(texts: list[str], device: str) -> Tensor:
    """Mask [B, 2B]: where a "nearly right" caption equals the right one and so is not wrong.

    `texts` are B right captions and then B nearly right ones.
    """
    batch = len(texts) // 2
    equal = torch.tensor(
        [a == b for a, b in zip(texts[:batch], texts[batch:], strict=True)], device=device
    )
    right = torch.zeros(batch, batch, device=device)
    return torch.cat([right, torch.diag(equal.float())], 1) > 0


def train_judge(
    pictures: TrainingPictures, plan: Plan, work: Path, device: str, models: Path = ASSETS
) -> None:
    """Train the judge, which measures and never optimises.

    Args:
        pictures: the training pictures.
        plan: the plan.
        work: folder of the checkpoint.
        device: where it is trained.
        models: folder of the models.
    """
    _train_judge("judge", pictures, plan, work, device, models, JUDGE_SEEDS)


def train_feature_tower(
    pictures: TrainingPictures, plan: Plan, work: Path, device: str, models: Path = ASSETS
) -> None:
    """Train a network of the judge's kind from another seed.

    Its features are the local part of the hallucination score, which may be a reward.

    Args:
        pictures: the training pictures.
        plan: the plan.
        work: folder of the checkpoint.
        device: where it is trained.
        models: folder of the models.
    """
    _train_judge("feature_tower", pictures, plan, work, device, models, TOWER_SEEDS)


def _train_judge(
    name: str,
    pictures: TrainingPictures,
    plan: Plan,
    work: Path,
    device: str,
    models: Path,
    first_seeds: tuple[int, int],
) -> None:
    """Train on the exact attributes of pictures blurred, noised and tinted at random.

    Args:
        name: folder in `models` and name of the checkpoint.
        pictures: the training pictures.
        plan: the plan; with a seed other than 0 it continues from the weights in `models`.
        work: folder of the checkpoint.
        device: where it is trained.
        models: folder of the models.
        first_seeds: added to the seed of the plan, for the initial weights and for the batches.
    """
    of_weights, of_batches = first_seeds
    torch.manual_seed(of_weights + plan.seed)
    heads = dict(pictures.world.heads)
    size = pictures.world.sizes.resolution
    halvings = (size // SIZE).bit_length() - 1  # more than the stages of a judge of 64 pixels have
    widths = (*WIDTHS, *WIDTHS[-1:] * halvings)
    judge = Judge(heads, widths, size).to(device).train()
    if plan.seed:
        judge.load_state_dict(load_file(models / name / "judge.safetensors"))
    answers = torch.from_numpy(pictures.visible_targets())

    def losses(rng: np.random.Generator, _: torch.Generator) -> dict[str, Tensor]:
        index = rng.integers(len(pictures), size=plan.batch)
        logits = judge(augment(to_tensor(pictures.images[index], device), rng, strength=1.0))
        targets = answers[index].to(device)
        right = [
            (logits[h].argmax(1) == targets[:, i]) | (targets[:, i] < 0)
            for i, h in enumerate(heads)
        ]
        losses = [
            F.cross_entropy(logits[h], targets[:, i], ignore_index=-100)
            for i, h in enumerate(heads)
        ]
        all_right = torch.stack(right).all(0).float().mean()
        return {"loss": torch.stack(losses).sum(), "all_right": all_right}

    use_ema(judge, fit(name, judge, losses, replace(plan, seed=plan.seed + of_batches), work))
    _recompute_batch_norm(judge, pictures, judge, device)
    if not process_rank():
        save_judge(judge.eval().cpu(), models / name)


def train_vision_tower(
    pictures: TrainingPictures, plan: Plan, work: Path, device: str, models: Path = ASSETS
) -> None:
    """Train the IP-Adapter's vision tower.

    Its embedding must predict the exact attributes; each patch must predict which noun it shows
    and the latents below it.

    Args:
        pictures: the training pictures.
        plan: the plan.
        work: folder of the checkpoint.
        device: where it is trained.
        models: folder of the models.
    """
    torch.manual_seed(plan.seed)
    world = pictures.world
    tower: Any = architectures.new_image_encoder(world.sizes)
    if plan.seed:
        tower.load_state_dict(load_file(models / VISION_TOWER / "model.safetensors"))
    attribute_heads = architectures.AttributeHeads(architectures.IMAGE_EMBED, world.heads)
    noun_head = architectures.new_noun_head(architectures.IMAGE_WIDTH, len(world.nouns))
    side = world.sizes.latent // 8  # of the latents below a patch
    latent_head = nn.Linear(architectures.IMAGE_WIDTH, LATENT_CHANNELS * side**2)
    heads = {"whole": attribute_heads, "patches": noun_head, "local": latent_head}
    model = nn.ModuleDict({"vision_tower": tower, **heads}).to(device).train()
    latents = first_process_first(
        lambda: encode_pictures(pictures, work.parent / "prior" / LATENTS, device, models)
    )
    answers = torch.from_numpy(pictures.visible_targets())

    def losses(rng: np.random.Generator, _: torch.Generator) -> dict[str, Tensor]:
        index = rng.integers(len(pictures), size=plan.batch)
        rgb = to_tensor(pictures.images[index], device)
        outputs = architectures.vision_outputs(
            tower, augment(rgb, rng, strength=0.25, most_shift=0)
        )
        shares, cells = pictures.noun_maps(index, device), architectures.patches(outputs)[:, 1:]
        log_share = F.log_softmax(noun_head(cells.mT.unflatten(2, shares.shape[2:])), 1)
        cell_latents = F.unfold(latents[index].to(device).float(), side, stride=side).mT
        latent_error = F.mse_loss(latent_head(cells), cell_latents)
        return {
            "loss_attributes": attribute_heads(outputs.image_embeds, answers[index].to(device)),
            "loss_nouns": -0.1 * (shares * log_share).sum() / shares.sum(),
            "loss_latents": latent_error / cell_latents.var(),
        }

    use_ema(model, fit("vision_tower", model, losses, plan, work))
    if not process_rank():
        tower.cpu().save_pretrained(models / VISION_TOWER, safe_serialization=True)


@torch.no_grad()
def _recompute_batch_norm(
    module: nn.Module, pictures: TrainingPictures, forward: Callable[[Tensor], Any], device: str
) -> None:
    """Recompute the running statistics of batch norms, in place.

    They belong to the last weights of the training, but the averaged weights are what is kept.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    module.train()
    for first in range(0, min(4096, len(pictures)), 256):
        forward(to_tensor(pictures.images[first : first + 256], device))
    for norm in norms:
        norm.momentum = 0.1


def encode_pictures(
    pictures: TrainingPictures, path: Path, device: str, models: Path = ASSETS
) -> Tensor:
    """Scaled latents [N, 4, S, S] float16 of all pictures.

    The file `path` keeps them; only latents that it lacks are computed. Latents of another
    autoencoder or of other pictures (`TrainingPictures.key`) are not used.
    """
    vae = architectures.AutoencoderTiny.from_pretrained(models / VAE).to(device).eval()
    side = pictures.world.sizes.latent
    origin = {"autoencoder": autoencoder_hash(models), "pictures": pictures.key}
    known = torch.empty(0, LATENT_CHANNELS, side, side, dtype=torch.float16)
    if path.exists():
        with safe_open(path, framework="pt") as file:
            if {"pictures": ""} | (file.metadata() or {}) == origin:
                known = file.get_tensor("latents")[: len(pictures)]
    if len(known) == len(pictures):
        return known
    parts = [known]
    with torch.no_grad():
        for first in range(len(known), len(pictures), 256):
            rgb = to_tensor(pictures.images[first : first + 256], device)
            # the toybox's latents keep their bytes
            with half_precision(rgb.device) if pictures.world.start else nullcontext():
                encoded = vae.encoder(rgb * 2.0 - 1.0) * vae.config.scaling_factor
            parts.append(encoded.half().cpu())
            if (first - len(known)) % 8192 == 0:
                sys.stderr.write(f"prior: latents {first}/{len(pictures)}\n")
    latents = torch.cat(parts).contiguous()
    with atomic_write(path) as temporary:
        save_file({"latents": latents}, temporary, metadata=origin)
    return latents


def autoencoder_hash(models: Path = ASSETS) -> str:
    """The SHA-256 of the autoencoder, which identifies latents and their reader."""
    return sha256_file(models / VAE / "diffusion_pytorch_model.safetensors")
