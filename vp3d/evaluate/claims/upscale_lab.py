"""What the claim on upscalers measures: pictures, networks, the tuning of one, and its figures.

The score of the product (embedded feature tower and CLIP) is the reward. The judge and the
measuring CLIP, which no reward uses, give a score of their own with a table of grades of its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vp3d.align.hallucination import distance, grade
from vp3d.align.learner import Law
from vp3d.align.upscaling import (
    ANCHOR,
    Enlarge,
    PictureLoss,
    absolute_error,
    feed_forward,
    score_loss,
    sharpness,
    squared_error,
    through_the_draw,
)
from vp3d.embedded.fit import Plan, fit, use_ema
from vp3d.embedded.upscaler_training import UpscalerLosses, degraded, large_pictures
from vp3d.evaluate import planted
from vp3d.evaluate.toybench import judges
from vp3d.metrics.attribute_judge import judge_views
from vp3d.metrics.hallucination_features import EmbeddedFeatures
from vp3d.metrics.hallucination_towers import embedded_features, grades
from vp3d.report.pictures import resized
from vp3d.system.files import plain, sha256_file
from vp3d.train.generators import make_generator
from vp3d.types import to_uint8
from vp3d.upscale.diffusion import DrawSettings
from vp3d.upscale.load import EMBEDDED as EMBEDDED_FOLDER
from vp3d.upscale.load import load_embedded_upscaler
from vp3d.upscale.realesrgan import load_realesrgan
from vp3d.worlds.toybox.data import draw_specs, to_tensor
from vp3d.worlds.toybox.planted import planted_pairs
from vp3d.worlds.toybox.scenes import Spec

REALESRGAN, EMBEDDED = "Real-ESRGAN small", "embedded"
BICUBIC, BASE = "bicubic", "base"
SCORE, ALONE, MSE, PLAIN = "score", "score alone", "MSE", "plain loss"
METHODS = (SCORE, ALONE, MSE, PLAIN)
STEPS, NOISE_LEVEL = 10, 20  # of the draws of the embedded upscaler
LAW = Law("uniform", 3)  # of its last steps that the gradient flows through
PICTURES = 512  # that are measured
CAPTIONS = 2000  # that are trained on
KNOWN_SCENES = 24  # of planted cases, for the table of the held-out grade
BATCH = 16  # pictures measured at a time
SHOWN = 6  # of them, the first
PLANS = {
    REALESRGAN: Plan(steps=150, lr=1e-3, batch=8, weight_decay=0.0, warmup=10, save_every_s=30.0),
    EMBEDDED: Plan(steps=100, lr=3e-4, batch=8, weight_decay=0.0, warmup=10, save_every_s=30.0),
}
Terms = Mapping[str, tuple[float, PictureLoss]]  # weight and loss by name
Losses = Callable[[np.random.Generator, torch.Generator], dict[str, Tensor]]
Table = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Subject:
    """An upscaler that may be tuned.

    Attributes:
        module: what is trained.
        enlarge: draws with a graph to its weights; the result is in [0, 1].
        plain_loss: the loss that it was trained with, given the captions and the batch.
    """

    module: nn.Module
    enlarge: Enlarge
    plain_loss: Callable[[list[Spec], int], Losses]


def load_subject(name: str) -> Subject:
    """The network of that name, from its published or embedded weights.

    Raises:
        MissingWeightsError: the extra `upscale` is not installed.
    """
    if name == REALESRGAN:
        network = load_realesrgan("small")
        enlarge = feed_forward(network)
        terms = {"l1": (1.0, absolute_error)}
        return Subject(network, enlarge, partial(PictureLosses, enlarge, terms))
    upscaler = load_embedded_upscaler(DrawSettings(STEPS, NOISE_LEVEL))
    parts = upscaler.parts
    return Subject(
        parts.unet,
        through_the_draw(upscaler, LAW),
        partial(UpscalerLosses, parts.unet, parts.vae, upscaler.tokens[:1]),
    )


def weights_of(name: str) -> str:
    """The hash of the weights that a figure depends on; "" for published ones."""
    weights = EMBEDDED_FOLDER / "unet" / "diffusion_pytorch_model.safetensors"
    return sha256_file(weights) if name == EMBEDDED else ""


class PictureLosses:
    """Draws true pictures, makes them small, enlarges them, and compares.

    Args:
        enlarge: the network.
        terms: weight and loss of its pictures and the true ones, by name.
        specs: the captions.
        batch: pictures of a step.
    """

    def __init__(self, enlarge: Enlarge, terms: Terms, specs: list[Spec], batch: int) -> None:
        self.enlarge, self.terms, self.specs, self.batch = enlarge, terms, specs, batch

    def __call__(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        """The weighted losses of one step, by name."""
        small, truth = examples(self.specs, self.batch, rng)
        large = self.enlarge(small, generator)
        return {f"loss_{key}": w * loss(large, truth) for key, (w, loss) in self.terms.items()}


def examples(specs: list[Spec], count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Small pictures `[count, 3, 32, 32]` and their true large ones `[count, 3, 128, 128]`."""
    large = large_pictures(specs, count, rng)
    small = np.stack([degraded(picture, rng) for picture in large])
    return to_tensor(small), to_tensor(large)


@lru_cache(maxsize=1)
def measured_pictures() -> tuple[Tensor, Tensor]:
    """Small and true pictures of captions that no training uses, `PICTURES` of them."""
    rng = np.random.default_rng([27, 4])
    return examples(draw_specs(rng, PICTURES, reserved=True), PICTURES, rng)


def settings_of(name: str) -> dict[str, Any]:
    """All that the tuning of a network depends on but its method and seed."""
    return {
        "plan": plain(PLANS[name]),
        "captions": CAPTIONS,
        "law": plain(LAW),
        "weights": weights_of(name),
        "anchor": ANCHOR,
        "steps": STEPS,
        "noise": NOISE_LEVEL,
    }


def tune(name: str, method: str, seed: int, states: Path) -> Subject:
    """A network after its tuning by one of `METHODS`; it continues from the states in a folder."""
    subject, plan = load_subject(name), PLANS[name]
    specs = draw_specs(np.random.default_rng([27, 5, seed]), CAPTIONS, reserved=False)
    score = (1.0, score_loss(embedded_features()))
    terms: dict[str, Terms] = {
        SCORE: {"score": score, "mse": (ANCHOR, squared_error)},
        ALONE: {"score": score},
        MSE: {"mse": (1.0, squared_error)},
    }
    if method == PLAIN:
        losses = subject.plain_loss(specs, plan.batch)
    else:
        losses = PictureLosses(subject.enlarge, terms[method], specs, plan.batch)
    identity = [name, method, seed, settings_of(name)]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    plan = replace(plan, seed=seed)
    subject.module.requires_grad_(True)
    ema = fit("tuned", subject.module, losses, plan, states / digest[:16])
    use_ema(subject.module, ema)
    subject.module.requires_grad_(False)
    return subject


def held_out_features() -> EmbeddedFeatures:
    """The judge's tower and the measuring CLIP, which no reward uses."""
    return EmbeddedFeatures(judges().judge, judges().clip)


def held_out_table() -> list[list[float]]:
    """The table of grades of `held_out_features`, fitted on planted cases."""
    torch.set_num_threads(1)
    pairs = planted_pairs(KNOWN_SCENES, 128, seed=1)
    return planted.calibrate(pairs, planted.proxies(pairs, held_out_features())["proxy"])


def measure_base(name: str, table: Table) -> dict[str, Any]:
    """The figures of a network as it is; of bicubic interpolation for `BICUBIC`."""
    torch.set_num_threads(1)
    if name == BICUBIC:
        return figures(lambda small, generator: bicubic(small), table)
    return figures(load_subject(name).enlarge, table)


def measure_tuned(name: str, method: str, seed: int, states: Path, table: Table) -> dict[str, Any]:
    """The figures of a network after its tuning."""
    torch.set_num_threads(1)
    return figures(tune(name, method, seed, states).enlarge, table)


def bicubic(small: Tensor) -> Tensor:
    """Four times as large, without a network, in [0, 1]."""
    return F.interpolate(small, scale_factor=4, mode="bicubic", align_corners=False).clamp(0.0, 1.0)


@torch.no_grad()
def figures(enlarge: Enlarge, table: Table) -> dict[str, Any]:
    """The figures of each measured picture, and the first pictures.

    Args:
        enlarge: the network; its noise is the same in each call.
        table: of the held-out grades.

    Returns:
        "errors": share of the attributes that the judge names otherwise than in the true picture;
        "grade": of the hallucination score by the towers of the reward, "held out": by those that
        were not optimised; "psnr" in dB; "sharpness" as a share of the truth's; "shown": the first
        pictures as a PNG in base64, side by side.
    """
    small, truth = measured_pictures()
    generator, rows, shown = make_generator(27, "upscale"), [], []
    for low, true in zip(small.split(BATCH), truth.split(BATCH), strict=True):
        large = (255.0 * enlarge(low, generator)).round() / 255.0
        rows.append(_compare(large, true, table))
        shown.append(large[:SHOWN])
    found: dict[str, Any] = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
    return found | {"shown": as_png(torch.cat(shown)[:SHOWN])}


def _compare(large: Tensor, truth: Tensor, table: Table) -> dict[str, Tensor]:
    judge = judges().judge
    named = zip(judge_views(judge, large), judge_views(judge, truth), strict=True)
    errors = [np.mean([one[key] != two[key] for key in two]) for one, two in named]
    scores = [distance(large, truth, f).proxy for f in (embedded_features(), held_out_features())]
    return {
        "errors": torch.tensor(np.array(errors)),
        "grade": grade(scores[0], grades()),
        "held out": grade(scores[1], table),
        "psnr": -10.0 * torch.log10((large - truth).square().mean((1, 2, 3)).clamp_min(1e-10)),
        "sharpness": sharpness(large, truth),
    }


def as_png(rgb: Tensor) -> str:
    """Pictures `[N, 3, H, W]` in [0, 1] side by side, as a PNG in base64."""
    stream = io.BytesIO()
    Image.fromarray(np.concatenate(list(to_uint8(rgb)), axis=1)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def from_png(text: str) -> list[np.ndarray]:
    """The pictures of `as_png`, uint8 `[H, H, 3]` each."""
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))
    return [found[:, n : n + len(found)] for n in range(0, found.shape[1], len(found))]


def true_pictures() -> dict[str, list[np.ndarray]]:
    """The first measured pictures: small ones, enlarged by interpolation, and true ones."""
    small, truth = (pictures[:SHOWN] for pictures in measured_pictures())
    side = truth.shape[-1]
    return {
        "small": [resized(picture, side) for picture in to_uint8(small)],
        "truth": list(to_uint8(truth)),
    }
