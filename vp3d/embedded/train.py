"""Train the embedded models: `python -m vp3d.embedded.train [PART ...]`.

Parts, in order: `autoencoder`, `clip`, `judge`, `eye` (the IP-Adapter's image encoder), `prior` (denoiser, text encoder and
the adapter together, the eye with them), `adapter` (adapter and eye alone, begun anew), `align` (all on their own drawings).
Without parts, all. Then `python -m vp3d.embedded.measure` prints the figures and writes them to MANIFEST.json.
Each part resumes from its last checkpoint under `data/toybox/` when the same command is given after a kill; `--more STEPS`
goes on from the committed weights with a fresh schedule. The device is the GPU where there is one. On a CPU one process a core
beats one process with many threads: `torchrun --nproc-per-node 2 -m vp3d.embedded.train prior --threads 1`.

Frames, grounds and cameras of the pictures: `vp3d.worlds.toybox.data`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vp3d.config.paths import ASSETS
from vp3d.diffusion.image_prompt import POOLED
from vp3d.embedded import architectures
from vp3d.embedded.denoising import AlignLosses, PriorLosses
from vp3d.embedded.fit import Plan, first_process_first, fit, process_rank, use_ema
from vp3d.embedded.image_branch import AdapterLosses, teach_image
from vp3d.embedded.latent_reader import READ, read_targets, taught_reader, tell
from vp3d.embedded.save import (
    resampler_state,
    save_adapter,
    save_clip,
    save_manifest,
    save_pipeline,
)
from vp3d.metrics.attribute_judge import Judge, save_judge
from vp3d.system.console import Parser, run_program, say
from vp3d.system.files import atomic_write, check_output, sha256_file, write_json
from vp3d.worlds.toybox.data import (
    HEADS,
    Pictures,
    attribute_targets,
    augment,
    confuse,
    noun_maps,
    spec_targets,
    thumbnails,
    to_tensor,
    training_pictures,
)
from vp3d.worlds.toybox.scenes import NOUNS, caption, vocabulary, words

EYE = Path("ip_adapter", "models", "image_encoder")  # in ASSETS
INSIDE = r"unet\.(?!conv_in|conv_out)|projection\.layers|eye\.vision_model\.encoder"  # matrices that Muon moves
PLANS = {
    "autoencoder": Plan(steps=6000, lr=2e-3, batch=32, weight_decay=0.0),
    "clip": Plan(steps=4000, lr=1e-3, weight_decay=0.05),
    "judge": Plan(steps=6000, lr=2e-3, weight_decay=0.05),
    "eye": Plan(steps=6000, lr=2e-3, weight_decay=0.05, warmup=300, muon=INSIDE),
    "prior": Plan(steps=6000, lr=1e-3, batch=32, warmup=300, muon=INSIDE),
    "adapter": Plan(steps=1500, lr=2e-3, batch=32, warmup=30, muon=INSIDE),
    "align": Plan(steps=800, lr=3e-4, batch=16, warmup=50, muon=INSIDE),
}
PARTS = tuple(PLANS)
LATENTS = "latents.safetensors"
TAUGHT = (
    "eye.",
    "projection.",
    "aid_",
    "unet.add_embedding.image.",
)  # with the adapter, and the attentions' `*_ip`
MORE = "more.txt"  # beside the checkpoints of an unfinished `--more`: its number of steps


def train_autoencoder(pictures: Pictures, plan: Plan, work: Path, device: str) -> None:
    """Fit the AutoencoderTiny on 32 x 32 crops near the middle, where the objects are; L1 + 2 L2 in [-1, 1]."""
    model = architectures.new_autoencoder().to(device, memory_format=torch.channels_last)
    if (ASSETS / "pipeline" / "vae").exists() and plan.seed:
        model.load_state_dict(
            load_file(ASSETS / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors")
        )

    def losses(rng: np.random.Generator, _: torch.Generator) -> dict[str, Tensor]:
        index = rng.integers(len(pictures), size=plan.batch)
        corners = rng.integers(0, 17, (plan.batch, 2)) + rng.integers(0, 17, (plan.batch, 2))
        crops = np.stack(
            [
                pictures.images[i, y : y + 32, x : x + 32]
                for i, (y, x) in zip(index, corners, strict=True)
            ]
        )
        target = (to_tensor(crops, device) * 2.0 - 1.0).contiguous(
            memory_format=torch.channels_last
        )
        latents = model.encoder(target)
        error = model.decoder(latents) - target
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
        model.to("cpu", memory_format=torch.contiguous_format).save_pretrained(
            ASSETS / "pipeline" / "vae"
        )


@torch.no_grad()
def whiten(model: architectures.AutoencoderTiny, rgb: Tensor, std: float = 0.5) -> None:
    """Shift and scale the latents of `rgb [N, 3, H, W]` in [-1, 1] to mean 0 and `std` in every channel, in place.

    The change goes into the encoder's last and the decoder's first convolution; only the decoder's soft clamp (tanh) and its
    border do not commute with it, which a short training of the decoder mends. scaling_factor then gives unit variance.
    """
    latents = model.encoder(rgb)
    mean, scale = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) / std
    last, first = model.encoder.layers[-1], model.decoder.layers[0]
    first.bias.add_((first.weight * mean[None, :, None, None]).sum((1, 2, 3)))
    first.weight.mul_(scale[None, :, None, None])
    last.weight.div_(scale[:, None, None, None])
    last.bias.sub_(mean).div_(scale)
    model.register_to_config(scaling_factor=1.0 / std)


def train_clip(pictures: Pictures, plan: Plan, work: Path, device: str) -> None:
    """Contrast pictures with captions and with nearly right captions (`confuse`), helped by attribute classifiers."""
    tokenizer = find_tokenizer(ASSETS / "clip")
    model = architectures.new_clip(tokenizer)
    if plan.seed:
        model.load_state_dict(
            load_file(ASSETS / "clip" / "open_clip_model.safetensors"), strict=False
        )
    aids = nn.ModuleDict({k: architectures.AttributeHeads(128, HEADS) for k in ("image", "text")})
    both = nn.ModuleDict({"clip": model, "aids": aids}).to(device).train()
    answers = torch.from_numpy(attribute_targets(pictures))

    def losses(rng: np.random.Generator, _: torch.Generator) -> dict[str, Tensor]:
        index = rng.choice(len(pictures), plan.batch, replace=False)
        views = [f", {pictures.view(i)}" if rng.random() < 0.4 else "" for i in index]
        specs = [pictures.specs[pictures.scene_of[i]] for i in index]
        texts = [caption(s) + v for s, v in zip(specs, views, strict=True)]
        texts += [caption(confuse(s, rng)) + v for s, v in zip(specs, views, strict=True)]
        rgb = augment(to_tensor(pictures.images[index], device), rng, strength=0.5)
        image = model.encode_image((rgb - 0.5) / 0.25)
        text = model.encode_text(architectures.tokenize(tokenizer, texts).to(device))
        scale = model.logit_scale.exp().clamp(max=100.0)
        logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        wrong = torch.tensor(
            [a == b for a, b in zip(texts[: plan.batch], texts[plan.batch :], strict=True)],
            device=device,
        )
        logits = logits.masked_fill(
            torch.cat(
                [torch.zeros(plan.batch, plan.batch, device=device), torch.diag(wrong.float())], 1
            )
            > 0,
            -1e4,
        )
        right = torch.arange(plan.batch, device=device)
        told, said = answers[index].to(device), spec_targets(specs).to(device)
        return {
            "loss_image_text": F.cross_entropy(logits, right),
            "loss_text_image": F.cross_entropy(logits[:, : plan.batch].T, right),
            "loss_attributes": aids["image"](image, told) + aids["text"](text[: plan.batch], said),
            "top1": (logits.argmax(1) == right).float().mean(),
        }

    averaged = fit("clip", both, losses, plan, work)
    use_ema(both, averaged)
    _settle_batch_norm(
        model.visual, pictures, lambda rgb: model.encode_image((rgb - 0.5) / 0.25), device
    )
    if not process_rank():
        save_clip(model.eval().cpu(), tokenizer, ASSETS / "clip")


def train_judge(pictures: Pictures, plan: Plan, work: Path, device: str) -> None:
    """Fit the measuring network on the exact attributes, on pictures that are blurred, noisy and tinted at random."""
    torch.manual_seed(4242 + plan.seed)
    judge = Judge(HEADS).to(device).train()
    if plan.seed:
        judge.load_state_dict(load_file(ASSETS / "judge" / "judge.safetensors"))
    answers = torch.from_numpy(attribute_targets(pictures))

    def losses(rng: np.random.Generator, _: torch.Generator) -> dict[str, Tensor]:
        index = rng.integers(len(pictures), size=plan.batch)
        logits = judge(augment(to_tensor(pictures.images[index], device), rng, strength=1.0))
        told = answers[index].to(device)
        right = torch.stack(
            [(logits[h].argmax(1) == told[:, i]) | (told[:, i] < 0) for i, h in enumerate(HEADS)]
        )
        losses = [
            F.cross_entropy(logits[h], told[:, i], ignore_index=-100) for i, h in enumerate(HEADS)
        ]
        return {"loss": torch.stack(losses).sum(), "all_right": right.all(0).float().mean()}

    use_ema(judge, fit("judge", judge, losses, replace(plan, seed=plan.seed + 900), work))
    _settle_batch_norm(judge, pictures, judge, device)
    if not process_rank():
        save_judge(judge.eval().cpu(), ASSETS / "judge")


def train_eye(pictures: Pictures, plan: Plan, work: Path, device: str) -> None:
    """Fit the image encoder: the whole must tell the exact attributes, and every patch which noun it shows and its latents."""
    torch.manual_seed(plan.seed)
    eye = architectures.new_image_encoder()
    if plan.seed:
        eye.load_state_dict(load_file(ASSETS / EYE / "model.safetensors"))
    whole, each = (
        architectures.AttributeHeads(architectures.IMAGE_EMBED, HEADS),
        architectures.new_noun_head(architectures.IMAGE_WIDTH, len(NOUNS)),
    )
    local = nn.Linear(architectures.IMAGE_WIDTH, 4 * 2 * 2)
    both = (
        nn.ModuleDict({"eye": eye, "whole": whole, "patches": each, "local": local})
        .to(device)
        .train()
    )
    latents = first_process_first(
        lambda: encode_pictures(pictures, work.parent / "prior" / LATENTS, device)
    )
    answers = torch.from_numpy(attribute_targets(pictures))

    def losses(rng: np.random.Generator, _: torch.Generator) -> dict[str, Tensor]:
        index = rng.integers(len(pictures), size=plan.batch)
        seen = architectures.see(
            eye,
            augment(to_tensor(pictures.images[index], device), rng, strength=0.25, most_shift=0),
        )
        shares, cells = noun_maps(pictures, index, device), architectures.patches(seen)[:, 1:]
        named = F.log_softmax(each(cells.mT.unflatten(2, shares.shape[2:])), 1)
        there = F.unfold(latents[index].to(device).float(), 2, stride=2).mT
        return {
            "loss_attributes": whole(seen.image_embeds, answers[index].to(device)),
            "loss_nouns": -0.1 * (shares * named).sum() / shares.sum(),
            "loss_latents": F.mse_loss(local(cells), there) / there.var(),
        }

    use_ema(both, fit("eye", both, losses, plan, work))
    if not process_rank():
        eye.cpu().save_pretrained(ASSETS / EYE, safe_serialization=True)


@torch.no_grad()
def _settle_batch_norm(module: nn.Module, pictures: Pictures, forward: object, device: str) -> None:
    """Recompute running statistics for the averaged weights: they belong to the last weights, not to their mean."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    module.train()
    for first in range(0, min(4096, len(pictures)), 256):
        forward(to_tensor(pictures.images[first : first + 256], device))  # type: ignore[operator]
    for norm in norms:
        norm.momentum = 0.1


def find_tokenizer(folder: Path) -> architectures.CLIPTokenizer:
    """The tokenizer that lies in `folder`, whose numbers the weights there know; a new one where there is none."""
    if (folder / "tokenizer.json").exists():
        return architectures.CLIPTokenizer.from_pretrained(folder)
    return architectures.new_tokenizer(words())


def encode_pictures(pictures: Pictures, path: Path, device: str) -> Tensor:
    """Scaled latents [N, 4, 16, 16] float16 of all pictures, kept in `path`, to which only the missing ones are added."""
    vae = (
        architectures.AutoencoderTiny.from_pretrained(ASSETS / "pipeline" / "vae").to(device).eval()
    )
    weights = autoencoder_sum()
    known = torch.empty(0, 4, 16, 16, dtype=torch.float16)
    if path.exists():
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("autoencoder") == weights:
                known = file.get_tensor("latents")[: len(pictures)]
    if len(known) == len(pictures):
        return known
    parts = [known]
    with torch.no_grad():
        for first in range(len(known), len(pictures), 256):
            rgb = to_tensor(pictures.images[first : first + 256], device)
            parts.append((vae.encoder(rgb * 2.0 - 1.0) * vae.config.scaling_factor).half().cpu())
            if (first - len(known)) % 8192 == 0:
                sys.stderr.write(f"prior: latents {first}/{len(pictures)}\n")
    latents = torch.cat(parts).contiguous()
    with atomic_write(path) as temporary:
        save_file({"latents": latents}, temporary, metadata={"autoencoder": weights})
    return latents


def autoencoder_sum() -> str:
    """The sha256 of the committed autoencoder, to which latents and their reader belong."""
    return sha256_file(ASSETS / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors")


def train_prior(pictures: Pictures, plan: Plan, work: Path, device: str) -> None:
    """Fit denoiser, text encoder and image branch together on latents, v-prediction (see `PriorLosses`)."""
    torch.manual_seed(plan.seed)
    tokenizer = find_tokenizer(ASSETS / "pipeline" / "tokenizer")
    parts = new_prior_parts(tokenizer, trained=bool(plan.seed))
    if not plan.seed:  # the committed text encoder tells all of it
        seen = thumbnails(pictures.images[:1]).shape[1]
        parts["aid_pooled"] = architectures.Telling(
            parts["unet"].time_embedding.linear_2.out_features, READ, seen
        )
        parts["aid_tokens"] = architectures.Telling(architectures.TEXT_WIDTH, READ, seen)
    model = nn.ModuleDict(parts).to(device)
    if not plan.seed and not (work / "prior.safetensors").exists():
        teach_text(model, tokenizer, pictures, plan, work, device)
    losses = prior_losses(model, tokenizer, pictures, plan, work.parent, device)
    use_ema(model, fit("prior", model, losses, plan, work))
    if not process_rank():
        save_prior(model, tokenizer)


def train_adapter(pictures: Pictures, plan: Plan, work: Path, device: str) -> None:
    """Fit the image branch alone, denoiser and text encoder stay as they are: begun anew (`teach_image`), or on from where it is.

    See `vp3d.embedded.image_branch`.
    """
    torch.manual_seed(plan.seed)
    tokenizer = find_tokenizer(ASSETS / "pipeline" / "tokenizer")
    model = nn.ModuleDict(new_prior_parts(tokenizer, trained=True)).to(device).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(TAUGHT) or "_ip." in name)
    losses = prior_losses(
        model, tokenizer, pictures, plan, work.parent, device, **AdapterLosses.OF_PRIOR
    )
    if not plan.seed and not (work / "adapter.safetensors").exists():
        teach_image(losses, plan, work)
    use_ema(model, fit("adapter", model, AdapterLosses(losses), plan, work))
    if not process_rank():
        save_image_branch(model)


def train_align(pictures: Pictures, plan: Plan, work: Path, device: str) -> None:
    """Fit everything that draws on its own drawings, on from the committed weights (see `AlignLosses`).

    What is kept is the mean of the weights it began with and those it found (Wortsman et al., arXiv 2109.01903), and no
    checkpoint: the same command then goes on from that mean.
    """
    torch.manual_seed(plan.seed)
    tokenizer = find_tokenizer(ASSETS / "pipeline" / "tokenizer")
    parts = new_prior_parts(tokenizer, trained=True)
    model = nn.ModuleDict({k: parts[k] for k in ("unet", "text", "projection", "eye")}).to(device)
    losses = AlignLosses(
        prior_losses(model, tokenizer, pictures, plan, work.parent, device), max(plan.batch // 2, 1)
    )
    begun = {k: p.detach().cpu().clone() for k, p in model.named_parameters()}
    use_ema(
        model,
        {
            k: torch.lerp(begun[k], v, 0.5)
            for k, v in fit("align", model, losses, plan, work).items()
        },
    )
    if not process_rank():
        save_prior(model, tokenizer)
        forget(work)


def prior_losses(
    model: nn.ModuleDict,
    tokenizer: object,
    pictures: Pictures,
    plan: Plan,
    work: Path,
    device: str,
    **options: Any,
) -> PriorLosses:
    """`PriorLosses` with `options`; latents, and the reader of this autoencoder, are made where `work` has none."""
    latents = first_process_first(
        lambda: encode_pictures(pictures, work / "prior" / LATENTS, device)
    )
    answers = read_targets(pictures)
    reader = taught_reader(
        pictures, latents, answers, work / f"reader-{autoencoder_sum()[:8]}", device, plan.steps
    )
    return PriorLosses(
        model, tokenizer, pictures, latents, answers, reader, batch=plan.batch, **options
    )


def new_prior_parts(tokenizer: architectures.CLIPTokenizer, trained: bool) -> dict[str, Any]:
    """Denoiser with image branch, text encoder, eye, projection and the aids; with the committed weights where `trained`.

    The eye is the committed one in any case: it is taught before (`train eye`).
    """
    parts = {
        "unet": architectures.new_unet(),
        "text": architectures.new_text_encoder(tokenizer),
        "eye": architectures.new_image_encoder(),
        "projection": architectures.new_image_projection(),
    }
    parts["eye"].load_state_dict(load_file(ASSETS / EYE / "model.safetensors"))
    architectures.add_image_branch(parts["unet"])
    if trained:
        load_prior_parts(parts)
    return parts | {
        "aid_map": architectures.new_noun_head(
            parts["unet"].config.block_out_channels[1], len(NOUNS)
        ),
        "aid_image": architectures.AttributeHeads(
            architectures.IMAGE_TOKENS * architectures.TEXT_WIDTH, READ
        ),
    }


def teach_text(
    model: nn.ModuleDict, tokenizer: object, pictures: Pictures, plan: Plan, work: Path, device: str
) -> None:
    """Let the text encoder tell what the picture shows before the denoiser listens, in place (see `PriorLosses`).

    The denoiser's gradient moves it too slowly: after half a million pictures it still drew the same for every view.
    """
    pooling = model.get_submodule("unet.add_embedding.text")
    taught = nn.ModuleDict(
        {k: model[k] for k in ("text", "aid_pooled", "aid_tokens")} | {"pooling": pooling}
    )

    def losses(rng: np.random.Generator, _: torch.Generator) -> dict[str, Tensor]:
        texts, told, seen = tell(pictures, rng.integers(len(pictures), size=128), device)
        text = model["text"](architectures.tokenize(tokenizer, texts).to(device))[0]
        return {
            "loss_pooled": model["aid_pooled"](pooling(text), told, seen),
            "loss_tokens": model["aid_tokens"](text.mean(1), told, seen),
        }

    use_ema(taught, fit("text", taught, losses, replace(plan, steps=min(1500, plan.steps)), work))


def forget(folder: Path) -> None:
    """Remove the checkpoints in `folder`; encoded pictures stay, they belong to the autoencoder and not to the training."""
    for checkpoint in folder.glob("*.safetensors"):
        if checkpoint.name != LATENTS:
            checkpoint.unlink(missing_ok=True)


def take_up(folder: Path, more: int | None, fresh: bool) -> None:
    """Keep the checkpoints in `folder` that this training left when it was killed, and forget those of any other."""
    note, wanted = folder / MORE, str(more or "")
    begun = note.read_text() if note.exists() else ""
    if fresh or begun != wanted:
        forget(folder)
        note.unlink(missing_ok=True)
    if more:
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(wanted)


def save_prior(model: nn.ModuleDict, tokenizer: object) -> None:
    """Write the pipeline folder and the adapter folder."""
    save_pipeline(model["unet"], model["text"], tokenizer, ASSETS / "pipeline")
    save_image_branch(model)


def save_image_branch(model: nn.ModuleDict) -> None:
    """Write the adapter and its eye."""
    save_adapter(model["unet"], model["projection"], ASSETS / "ip_adapter")
    eye: Any = model["eye"].cpu()
    eye.save_pretrained(ASSETS / EYE, safe_serialization=True)


def load_prior_parts(parts: dict[str, nn.Module]) -> None:
    """Start from the committed weights."""
    pipeline, adapter = ASSETS / "pipeline", ASSETS / "ip_adapter" / "models"
    parts["text"].load_state_dict(load_file(pipeline / "text_encoder" / "model.safetensors"))
    weights = load_file(adapter / "ip-adapter_toybox.safetensors")
    parts["projection"].load_state_dict(
        resampler_state(
            {
                k.removeprefix("image_proj."): v
                for k, v in weights.items()
                if k.startswith("image_proj.")
            }
        )
    )
    unet = load_file(pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    unet = {k.replace("add_embedding.", "add_embedding.text."): v for k, v in unet.items()}
    processors: dict[str, Any] = parts["unet"].attn_processors  # type: ignore[assignment]
    for number, name in enumerate(processors):
        if name.endswith("attn2.processor"):
            unet |= {
                f"{name}.{k}.weight": weights[f"ip_adapter.{number}.{k}.weight"]
                for k in ("to_k_ip", "to_v_ip")
            }
    unet["add_embedding.image.weight"] = weights[POOLED]
    parts["unet"].load_state_dict(unet)


TRAINERS = {"autoencoder": train_autoencoder, "clip": train_clip, "judge": train_judge}
TRAINERS |= {"eye": train_eye, "prior": train_prior, "align": train_align, "adapter": train_adapter}


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and train the parts it names."""
    parser = Parser(prog="python -m vp3d.embedded.train", description=__doc__.split("\n\n")[1])
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"any of: {', '.join(PARTS)} (default: all, in order)",
    )
    parser.add_argument(
        "--more", type=int, metavar="STEPS", help="go on from the committed weights for STEPS steps"
    )
    parser.add_argument(
        "--steps",
        type=int,
        help="steps of a whole training; align goes on from the committed weights",
    )
    parser.add_argument(
        "--batch", type=int, help="pictures a step and process (default: the part's own, for a CPU)"
    )
    parser.add_argument(
        "--lr",
        type=float,
        help="peak learning rate (default: the part's own, half of it with --more)",
    )
    parser.add_argument(
        "--chunks", type=int, default=4, help="chunks of 12,000 training pictures (default 4)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data/toybox"),
        help="pictures and checkpoints (default data/toybox)",
    )
    parser.add_argument("--fresh", action="store_true", help="forget the part's checkpoint")
    options = parser.parse_args(argv)
    unknown = [p for p in options.parts if p not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    if options.more is not None and options.steps is not None:
        parser.error("--more and --steps: give one of them")
    for name in ("more", "steps", "batch", "chunks", "threads"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} takes a whole number of 1 or more")
    if options.lr is not None and not 0.0 < options.lr < 1.0:
        parser.error("--lr takes a number between 0 and 1")
    check_output(options.data, "--data FOLDER")
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    work = options.data / "training"
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not process_rank():
        write_json(ASSETS / "vocabulary.json", vocabulary())
    pictures = first_process_first(
        lambda: training_pictures(options.data / "pictures", options.chunks, say)
    )
    for part in options.parts or PARTS:
        plan = PLANS[part]
        if options.more:
            warmup = min(plan.warmup, options.more // 10)
            plan = replace(
                plan, steps=options.more, lr=plan.lr / 2, seed=plan.seed + 1, warmup=warmup
            )
        elif options.steps:
            plan = replace(plan, steps=options.steps)
        plan = replace(plan, lr=options.lr or plan.lr, batch=options.batch or plan.batch)
        first_process_first(partial(take_up, work / part, options.more, options.fresh))
        TRAINERS[part](pictures, plan, work / part, device)
        if (
            torch.distributed.is_initialized()
        ):  # the next part may read what process 0 has just written
            torch.distributed.barrier()
        (work / part / MORE).unlink(missing_ok=True)
    if not process_rank():
        save_manifest(ASSETS)


if __name__ == "__main__":
    run_program("train", main)
