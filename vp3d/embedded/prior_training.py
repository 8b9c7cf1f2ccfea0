"""Training of the embedded prior: denoiser, text encoder and image branch.

`train_prior` trains them together, `train_adapter` the image branch alone, `train_align` all of
them on pictures that the model draws itself. Each function writes its models to `ASSETS`; its
arguments are the training pictures, the plan, the folder of the part's checkpoints and the device.
A plan with a seed other than 0 continues from the committed weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vp3d.config.paths import ASSETS
from vp3d.diffusion.image_prompt import POOLED
from vp3d.embedded import architectures
from vp3d.embedded.denoising import AlignLosses, PriorLosses
from vp3d.embedded.fit import Plan, first_process_first, fit, process_rank, use_ema
from vp3d.embedded.image_branch import AdapterLosses, train_image_tokens
from vp3d.embedded.latent_reader import READER_HEADS, caption_batch, read_targets, train_reader
from vp3d.embedded.picture_training import (
    LATENTS,
    VISION_TOWER,
    autoencoder_hash,
    encode_pictures,
)
from vp3d.embedded.save import resampler_state, save_adapter, save_pipeline
from vp3d.worlds.toybox.data import Pictures, thumbnails
from vp3d.worlds.toybox.scenes import NOUNS, words

# Parameters that `train_adapter` moves, by the start of their name; the attentions' `*_ip` too
ADAPTER_PARAMETERS = ("vision_tower.", "projection.", "aid_", "unet.add_embedding.image.")


def train_prior(pictures: Pictures, plan: Plan, work: Path, device: str) -> None:
    """Train denoiser, text encoder and image branch together on latents (see `PriorLosses`)."""
    torch.manual_seed(plan.seed)
    tokenizer = _tokenizer()
    parts = new_prior_parts(tokenizer, trained=bool(plan.seed))
    if not plan.seed:  # the committed text encoder predicts all of it already
        size = thumbnails(pictures.images[:1]).shape[1]
        width = parts["unet"].time_embedding.linear_2.out_features
        parts["aid_pooled"] = architectures.TextHeads(width, READER_HEADS, size)
        parts["aid_tokens"] = architectures.TextHeads(architectures.TEXT_WIDTH, READER_HEADS, size)
    model = nn.ModuleDict(parts).to(device)
    if not plan.seed and not (work / "prior.safetensors").exists():
        train_text_encoder(model, tokenizer, pictures, plan, work, device)
    losses = prior_losses(model, tokenizer, pictures, plan, work.parent, device)
    use_ema(model, fit("prior", model, losses, plan, work))
    if not process_rank():
        save_prior(model, tokenizer)


def train_adapter(pictures: Pictures, plan: Plan, work: Path, device: str) -> None:
    """Train the image branch with denoiser and text encoder frozen (see `image_branch`).

    With seed 0 the branch is trained from scratch, else from the committed weights.
    """
    torch.manual_seed(plan.seed)
    tokenizer = _tokenizer()
    model = nn.ModuleDict(new_prior_parts(tokenizer, trained=True)).to(device).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(ADAPTER_PARAMETERS) or "_ip." in name)
    losses = prior_losses(
        model, tokenizer, pictures, plan, work.parent, device, **AdapterLosses.PRIOR_OPTIONS
    )
    if not plan.seed and not (work / "adapter.safetensors").exists():
        train_image_tokens(losses, plan, work)
    use_ema(model, fit("adapter", model, AdapterLosses(losses), plan, work))
    if not process_rank():
        save_image_branch(model)


def train_align(pictures: Pictures, plan: Plan, work: Path, device: str) -> None:
    """Train all parts on their own drawings, from the committed weights (see `AlignLosses`).

    The result is the mean of the weights before and after (Wortsman et al., arXiv 2109.01903). No
    checkpoint remains, so the same command continues from that mean.
    """
    torch.manual_seed(plan.seed)
    tokenizer = _tokenizer()
    parts = new_prior_parts(tokenizer, trained=True)
    names = ("unet", "text", "projection", "vision_tower")
    model = nn.ModuleDict({k: parts[k] for k in names}).to(device)
    losses = AlignLosses(
        prior_losses(model, tokenizer, pictures, plan, work.parent, device), max(plan.batch // 2, 1)
    )
    before = {k: p.detach().cpu().clone() for k, p in model.named_parameters()}
    after = fit("align", model, losses, plan, work)
    use_ema(model, {k: torch.lerp(before[k], v, 0.5) for k, v in after.items()})
    if not process_rank():
        save_prior(model, tokenizer)
        remove_checkpoints(work)


def train_text_encoder(
    model: nn.ModuleDict, tokenizer: object, pictures: Pictures, plan: Plan, work: Path, device: str
) -> None:
    """Train the text encoder alone, in place, before the denoiser is trained with it.

    It must predict what the picture shows (see `PriorLosses`). The denoiser's gradient trains it
    too slowly: after half a million pictures every view of an object was still drawn alike.

    Args:
        model: The parts of the prior with the heads "aid_pooled" and "aid_tokens".
        tokenizer: Of the text encoder.
        pictures: The training pictures.
        plan: Of the prior; at most 1500 steps of it.
        work: Folder of the checkpoints.
        device: Where to train.
    """
    pooling = model.get_submodule("unet.add_embedding.text")
    trained = nn.ModuleDict({k: model[k] for k in ("text", "aid_pooled", "aid_tokens")})
    trained["pooling"] = pooling

    def losses(rng: np.random.Generator, _: torch.Generator) -> dict[str, Tensor]:
        index = rng.integers(len(pictures), size=128)
        texts, targets, thumbnail = caption_batch(pictures, index, device)
        text = model["text"](architectures.tokenize(tokenizer, texts).to(device))[0]
        return {
            "loss_pooled": model["aid_pooled"](pooling(text), targets, thumbnail),
            "loss_tokens": model["aid_tokens"](text.mean(1), targets, thumbnail),
        }

    plan = replace(plan, steps=min(1500, plan.steps))
    use_ema(trained, fit("text", trained, losses, plan, work))


def prior_losses(
    model: nn.ModuleDict,
    tokenizer: object,
    pictures: Pictures,
    plan: Plan,
    work: Path,
    device: str,
    **options: Any,
) -> PriorLosses:
    """The `PriorLosses` of a model. Computes latents and trains a reader if `work` lacks them.

    Args:
        model: The parts of the prior.
        tokenizer: Of the text encoder.
        pictures: The training pictures.
        plan: Of the training; its batch, and an upper bound for the reader's steps.
        work: Folder of all checkpoints.
        device: Where to train.
        **options: Further arguments of `PriorLosses`.

    Returns:
        The losses, to be passed to `fit`.
    """
    latents = first_process_first(
        lambda: encode_pictures(pictures, work / "prior" / LATENTS, device)
    )
    targets = read_targets(pictures)
    reader_folder = work / f"reader-{autoencoder_hash()[:8]}"
    reader = train_reader(pictures, latents, targets, reader_folder, device, plan.steps)
    return PriorLosses(
        model, tokenizer, pictures, latents, targets, reader, batch=plan.batch, **options
    )


def new_prior_parts(tokenizer: architectures.CLIPTokenizer, trained: bool) -> dict[str, Any]:
    """The parts of the prior: denoiser with image branch, text encoder, projection, vision tower.

    With them come the auxiliary heads "aid_map" and "aid_image". The parts have the committed
    weights if `trained`; the vision tower always has, because it is trained before the others.
    """
    parts = {
        "unet": architectures.new_unet(),
        "text": architectures.new_text_encoder(tokenizer),
        "vision_tower": architectures.new_image_encoder(),
        "projection": architectures.new_image_projection(),
    }
    parts["vision_tower"].load_state_dict(load_file(ASSETS / VISION_TOWER / "model.safetensors"))
    architectures.add_image_branch(parts["unet"])
    if trained:
        load_prior_parts(parts)
    cell_width = parts["unet"].config.block_out_channels[1]
    token_numbers = architectures.IMAGE_TOKENS * architectures.TEXT_WIDTH
    return parts | {
        "aid_map": architectures.new_noun_head(cell_width, len(NOUNS)),
        "aid_image": architectures.AttributeHeads(token_numbers, READER_HEADS),
    }


def load_prior_parts(parts: dict[str, nn.Module]) -> None:
    """Load the committed weights of text encoder, projection and denoiser, in place."""
    pipeline, adapter = ASSETS / "pipeline", ASSETS / "ip_adapter" / "models"
    parts["text"].load_state_dict(load_file(pipeline / "text_encoder" / "model.safetensors"))
    weights = load_file(adapter / "ip-adapter_toybox.safetensors")
    prefix = "image_proj."
    projection = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    parts["projection"].load_state_dict(resampler_state(projection))
    unet = load_file(pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    unet = {k.replace("add_embedding.", "add_embedding.text."): v for k, v in unet.items()}
    processors: dict[str, Any] = parts["unet"].attn_processors  # type: ignore[assignment]
    for number, name in enumerate(processors):
        if name.endswith("attn2.processor"):
            for matrix in ("to_k_ip", "to_v_ip"):
                weight = weights[f"ip_adapter.{number}.{matrix}.weight"]
                unet[f"{name}.{matrix}.weight"] = weight
    unet["add_embedding.image.weight"] = weights[POOLED]
    parts["unet"].load_state_dict(unet)


def save_prior(model: nn.ModuleDict, tokenizer: object) -> None:
    """Write the pipeline folder and the adapter folder."""
    save_pipeline(model["unet"], model["text"], tokenizer, ASSETS / "pipeline")
    save_image_branch(model)


def save_image_branch(model: nn.ModuleDict) -> None:
    """Write the adapter and its vision tower."""
    save_adapter(model["unet"], model["projection"], ASSETS / "ip_adapter")
    tower: Any = model["vision_tower"].cpu()
    tower.save_pretrained(ASSETS / VISION_TOWER, safe_serialization=True)


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in `folder`, but not the latents of the pictures.

    Latents depend on the autoencoder and not on the training.
    """
    for checkpoint in folder.glob("*.safetensors"):
        if checkpoint.name != LATENTS:
            checkpoint.unlink(missing_ok=True)


def _tokenizer() -> architectures.CLIPTokenizer:
    return architectures.load_tokenizer(ASSETS / "pipeline" / "tokenizer", words())
