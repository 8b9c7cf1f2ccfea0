"""Training of the embedded prior: denoiser, text encoder and image branch.

`train_prior` trains them together, `train_adapter` the image branch alone, `train_align` all of
them on pictures that the model draws itself. Each function writes its models to the folder
`models`; its arguments are the training pictures, the plan, the folder of the part's checkpoints,
the device and `models`. A plan with a seed other than 0 continues from the weights in `models`. If
`models` has no vision tower, denoiser and text encoder are trained without image branch.
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
from vp3d.embedded.latent_reader import (
    caption_batch,
    read_targets,
    reader_heads,
    train_reader,
)
from vp3d.embedded.picture_training import (
    LATENTS,
    VISION_TOWER,
    autoencoder_hash,
    encode_pictures,
)
from vp3d.embedded.sample_sheet import SampleSheet
from vp3d.embedded.save import ADAPTER_FILE, resampler_state, save_adapter, save_pipeline
from vp3d.embedded.warm_start import start_from
from vp3d.worlds.base import TrainingPictures, World
from vp3d.worlds.toybox.data import TOYBOX, thumbnails

TEXT_STEPS, WARM_TEXT_STEPS = 1500, 400  # of the text encoder alone, at most
WARM_READER_STEPS = 600
PRIOR_PARTS = ("unet", "text", "projection", "vision_tower")
ADAPTER = Path("ip_adapter", "models")
# Shares of the kinds of condition without an image branch: text and nothing
TEXT_SHARES, ALIGN_TEXT_SHARES = (0.9,), (1.0,)
# Parameters that `train_adapter` moves, by the start of their name; the attentions' `*_ip` too
ADAPTER_PARAMETERS = ("vision_tower.", "projection.", "aid_", "unet.add_embedding.image.")


def train_prior(
    pictures: TrainingPictures, plan: Plan, work: Path, device: str, models: Path = ASSETS
) -> None:
    """Train denoiser, text encoder and image branch together on latents (see `PriorLosses`)."""
    torch.manual_seed(plan.seed)
    world = pictures.world
    tokenizer = prior_tokenizer(models, world)
    parts = new_prior_parts(tokenizer, bool(plan.seed), world, models)
    heads = reader_heads(world)
    if not plan.seed:  # the committed text encoder predicts all of it already
        size = thumbnails(pictures.images[:1]).shape[1]
        width = parts["unet"].time_embedding.linear_2.out_features
        parts["aid_pooled"] = architectures.TextHeads(width, heads, size)
        parts["aid_tokens"] = architectures.TextHeads(architectures.TEXT_WIDTH, heads, size)
    model = nn.ModuleDict(parts).to(device)
    if not plan.seed and not (work / "prior.safetensors").exists():
        train_text_encoder(model, tokenizer, pictures, plan, work, device)
    shares = {} if "projection" in parts else {"shares": TEXT_SHARES}
    losses = prior_losses(
        model, tokenizer, pictures, plan, work.parent, device, models=models, **shares
    )
    sheet = SampleSheet(model, tokenizer, pictures, models, work / "sheets")
    use_ema(model, fit("prior", model, losses, plan, work, sheet))
    if not process_rank():
        save_prior(model, tokenizer, models, world)


def train_adapter(
    pictures: TrainingPictures, plan: Plan, work: Path, device: str, models: Path = ASSETS
) -> None:
    """Train the image branch with denoiser and text encoder frozen (see `image_branch`).

    With seed 0 the branch is trained from scratch, else from the committed weights.
    """
    torch.manual_seed(plan.seed)
    world = pictures.world
    tokenizer = prior_tokenizer(models, world)
    parts = new_prior_parts(tokenizer, True, world, models)
    model = nn.ModuleDict(parts).to(device).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(ADAPTER_PARAMETERS) or "_ip." in name)
    losses = prior_losses(
        model,
        tokenizer,
        pictures,
        plan,
        work.parent,
        device,
        models=models,
        **AdapterLosses.PRIOR_OPTIONS,
    )
    if not plan.seed and not (work / "adapter.safetensors").exists():
        train_image_tokens(losses, plan, work)
    use_ema(model, fit("adapter", model, AdapterLosses(losses), plan, work))
    if not process_rank():
        save_image_branch(model, models, world)


def train_align(
    pictures: TrainingPictures, plan: Plan, work: Path, device: str, models: Path = ASSETS
) -> None:
    """Train all parts on their own drawings, from the committed weights (see `AlignLosses`).

    The result is the mean of the weights before and after (Wortsman et al., arXiv 2109.01903). No
    checkpoint remains, so the same command continues from that mean.
    """
    torch.manual_seed(plan.seed)
    world = pictures.world
    tokenizer = prior_tokenizer(models, world)
    parts = new_prior_parts(tokenizer, True, world, models)
    model = nn.ModuleDict({k: p for k, p in parts.items() if k in PRIOR_PARTS}).to(device)
    shares = {} if "projection" in parts else {"shares": TEXT_SHARES}
    losses = AlignLosses(
        prior_losses(
            model, tokenizer, pictures, plan, work.parent, device, models=models, **shares
        ),
        max(plan.batch // 2, 1),
        ALIGN_TEXT_SHARES if shares else AlignLosses.SHARES,
    )
    before = {k: p.detach().cpu().clone() for k, p in model.named_parameters()}
    after = fit("align", model, losses, plan, work)
    use_ema(model, {k: torch.lerp(before[k], v, 0.5) for k, v in after.items()})
    if not process_rank():
        save_prior(model, tokenizer, models, world)
        remove_checkpoints(work)


def train_text_encoder(
    model: nn.ModuleDict,
    tokenizer: object,
    pictures: TrainingPictures,
    plan: Plan,
    work: Path,
    device: str,
) -> None:
    """Train the text encoder alone, in place, before the denoiser is trained with it.

    It must predict what the picture shows (see `PriorLosses`). The denoiser's gradient trains it
    too slowly: after half a million pictures every view of an object was still drawn alike.

    Args:
        model: The parts of the prior with the heads "aid_pooled" and "aid_tokens".
        tokenizer: Of the text encoder.
        pictures: The training pictures.
        plan: Of the prior; at most `TEXT_STEPS` steps of it, in a world with a start
            `WARM_TEXT_STEPS`.
        work: Folder of the checkpoints.
        device: Where to train.
    """
    pooling = model.get_submodule("unet.add_embedding")
    pooling = getattr(pooling, "text", pooling)  # of a denoiser with image branch
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

    steps = TEXT_STEPS if pictures.world.start is None else WARM_TEXT_STEPS
    plan = replace(plan, steps=min(steps, plan.steps), hold=0.0, ema_share=0.03)
    use_ema(trained, fit("text", trained, losses, plan, work))


def prior_losses(
    model: nn.ModuleDict,
    tokenizer: object,
    pictures: TrainingPictures,
    plan: Plan,
    work: Path,
    device: str,
    models: Path = ASSETS,
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
        models: Folder of the models.
        **options: Further arguments of `PriorLosses`.

    Returns:
        The losses, to be passed to `fit`.
    """
    latents = first_process_first(
        lambda: encode_pictures(pictures, work / "prior" / LATENTS, device, models)
    )
    targets = read_targets(pictures)
    names = ("reader", autoencoder_hash(models)[:8], pictures.key[:8])
    reader_folder = work / "-".join(name for name in names if name)
    most = plan.steps if pictures.world.start is None else min(plan.steps, WARM_READER_STEPS)
    reader = train_reader(pictures, latents, targets, reader_folder, device, most)
    return PriorLosses(
        model, tokenizer, pictures, latents, targets, reader, batch=plan.batch, **options
    )


def new_prior_parts(
    tokenizer: architectures.CLIPTokenizer,
    trained: bool,
    world: World = TOYBOX,
    models: Path = ASSETS,
) -> dict[str, Any]:
    """The parts of the prior: denoiser with image branch, text encoder, projection, vision tower.

    With them come the auxiliary heads "aid_map" and "aid_image". The parts have the weights in
    `models` if `trained`; the vision tower always has, because it is trained before the others.
    Without a vision tower in `models` there is no image branch.
    """
    sizes, tower = world.sizes, models / VISION_TOWER / "model.safetensors"
    parts: dict[str, Any] = {
        "unet": architectures.new_unet(sizes),
        "text": architectures.new_text_encoder(tokenizer),
    }
    if not trained and world.start is not None:
        start_from(world.start, parts["unet"], parts["text"], tokenizer)
    cell_width = sizes.widths[-2]
    aids = {"aid_map": architectures.new_noun_head(cell_width, len(world.nouns))}
    if not tower.exists():
        if trained:
            load_text_branch(parts, models)
        return parts | aids
    parts["vision_tower"] = architectures.new_image_encoder(sizes)
    parts["projection"] = architectures.new_image_projection()
    parts["vision_tower"].load_state_dict(load_file(tower))
    if trained and not (models / ADAPTER / ADAPTER_FILE.format(world=world.name)).exists():
        load_text_branch(parts, models)
        trained = False  # the image branch is new
    architectures.add_image_branch(parts["unet"])
    if trained:
        load_prior_parts(parts, world, models)
    token_numbers = architectures.IMAGE_TOKENS * architectures.TEXT_WIDTH
    image_head = architectures.AttributeHeads(token_numbers, reader_heads(world))
    return parts | aids | {"aid_image": image_head}


def load_text_branch(parts: dict[str, nn.Module], models: Path) -> None:
    """Load the weights of text encoder and of the denoiser without image branch, in place."""
    pipeline = models / "pipeline"
    parts["text"].load_state_dict(load_file(pipeline / "text_encoder" / "model.safetensors"))
    parts["unet"].load_state_dict(
        load_file(pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    )


def load_prior_parts(
    parts: dict[str, nn.Module], world: World = TOYBOX, models: Path = ASSETS
) -> None:
    """Load the weights of text encoder, projection and denoiser, in place."""
    pipeline = models / "pipeline"
    parts["text"].load_state_dict(load_file(pipeline / "text_encoder" / "model.safetensors"))
    weights = load_file(models / ADAPTER / ADAPTER_FILE.format(world=world.name))
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


def save_prior(
    model: nn.ModuleDict, tokenizer: object, models: Path = ASSETS, world: World = TOYBOX
) -> None:
    """Write the pipeline folder and, if there is an image branch, the adapter folder."""
    save_pipeline(model["unet"], model["text"], tokenizer, models / "pipeline", world)
    if "projection" in model:
        save_image_branch(model, models, world)


def save_image_branch(model: nn.ModuleDict, models: Path = ASSETS, world: World = TOYBOX) -> None:
    """Write the adapter and its vision tower."""
    save_adapter(model["unet"], model["projection"], models / "ip_adapter", world)
    tower: Any = model["vision_tower"].cpu()
    tower.save_pretrained(models / VISION_TOWER, safe_serialization=True)


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in `folder`, but not the latents of the pictures.

    Latents depend on the autoencoder and not on the training.
    """
    for checkpoint in folder.glob("*.safetensors"):
        if checkpoint.name != LATENTS:
            checkpoint.unlink(missing_ok=True)


def prior_tokenizer(models: Path, world: World) -> architectures.CLIPTokenizer:
    """The tokenizer in `models`, or a new one of the words of `world`."""
    return architectures.load_tokenizer(models / "pipeline" / "tokenizer", world.words)
