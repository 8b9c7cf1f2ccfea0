"""From a config to what an `align` run trains: checks, prompts, the run folder, the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from vp3d.align.learner import parse_law
from vp3d.align.objectives import parse_rewards
from vp3d.build import resolve_device
from vp3d.config.schema import AlignConfig, Config, PriorConfig
from vp3d.diffusion.load import load_prior
from vp3d.errors import UserError
from vp3d.prompts import with_view
from vp3d.runs.folder import RunFolder
from vp3d.runs.journal import Journal
from vp3d.system.files import write_json
from vp3d.tuning.held_out import held_out_score, is_foreign_clip
from vp3d.tuning.rewards import build_objectives, check_rewards
from vp3d.tuning.session import Prompts, Training
from vp3d.weights.locate import check_fetched, find_weights

VALIDATION_SHARE = 0.25  # of the prompts, which the guard keeps for itself
LEAST_PROMPTS = 4


def split_prompts(prompts: Sequence[str], view: str) -> Prompts:
    """Prompts to train on and, every fourth one, to validate with; view words are added.

    UserError for fewer than four different ones.
    """
    found = list(dict.fromkeys(filter(None, (prompt.strip() for prompt in prompts))))
    if len(found) < LEAST_PROMPTS:
        raise UserError(
            f"align needs {LEAST_PROMPTS} different prompts or more, got {len(found)}: the guard "
            "keeps every fourth; add lines to --prompts"
        )
    words = [with_view(prompt, view) if view else prompt for prompt in found]
    every = round(1.0 / VALIDATION_SHARE)
    return Prompts(
        tuple(word for i, word in enumerate(words) if i % every != every - 1),
        tuple(words[every - 1 :: every]),
    )


def check_request(config: Config) -> None:
    """Refuse rewards that cannot be used, weights that are not here, and settings that contradict
    each other, before a model is loaded.
    """
    optimised = [name for name, _ in parse_rewards(config.align.reward)]
    check_rewards(config.align.reward, config.align.method, resolve_device(config.backend))
    if config.align.guard in optimised:
        name = config.align.guard
        raise UserError(f"--guard {name} is optimised itself, so it guards nothing: use another")
    if "clip" in (*optimised, config.align.guard) and is_foreign_clip(
        config.rewards.clip, config.prior.path
    ):
        raise UserError(
            "clip is the embedded CLIP, which knows the embedded models' pictures only: fetch one "
            "and name it (models fetch clip-vit-b32, rewards.clip=clip-vit-b32), or use imagereward"
        )
    _check_weights(config, optimised)
    _check_method(config.align)
    if config.prior.compile:
        raise UserError("prior.compile and align exclude each other: set prior.compile=false")
    if config.align.text_encoder:
        _check_encoders_stay(config.prior)
    if config.prior.loras:
        raise UserError("align trains one LoRA: give --from FILE instead of prior.loras")


def _check_method(align: AlignConfig) -> None:
    """Refuse settings that the method does not read, or cannot learn with."""
    parse_law(align.k)
    default = AlignConfig()
    if align.method != "alignprop":
        options = {
            "k": "--k",
            "repeat_last": "--repeat-last",
            "input_gradient": "align.input_gradient",
        }
        for key, option in options.items():
            if getattr(align, key) != getattr(default, key):
                raise UserError(f"{option} is of --method alignprop only: leave it out")
    if align.group > align.batch:
        raise UserError(
            f"align.group={align.group} drawings of each prompt do not fit into "
            f"align.batch={align.batch}: set align.batch={align.group} or more"
        )
    if align.method == "ddpo" and align.steps < 2:
        raise UserError("--method ddpo needs align.steps=2 or more: the last step has no density")
    if align.method == "ddpo" and align.batch < 2:
        raise UserError(
            "--method ddpo needs align.batch=2 or more: it compares the drawings of a batch"
        )


def _check_weights(config: Config, optimised: Sequence[str]) -> None:
    """Refuse weights that are not here, of the model, the rewards and the guard."""
    rewards, prior = config.rewards, config.prior
    places = {
        "clip": ("rewards.clip", rewards.clip),
        "imagereward": ("rewards.imagereward", rewards.imagereward),
        "pickscore": ("rewards.pickscore", rewards.pickscore),
        "hpsv2": ("rewards.hpsv2", rewards.hpsv2),
        "aesthetic": ("rewards.aesthetic_model", rewards.aesthetic_model),
        "dino": ("rewards.dinov2", rewards.dinov2),
    }
    judges = [places[name] for name in (*optimised, config.align.guard) if name in places]
    own = [("prior.path", prior.path), ("prior.ip_adapter", prior.ip_adapter)]
    read = [(key, location) for key, location in (*own, *judges) if location]
    check_fetched(read)  # one command for all that are missing
    for key, location in read:
        find_weights(location, key)


def _check_encoders_stay(prior: PriorConfig) -> None:
    if prior.offload_encoders:
        raise UserError(
            "a LoRA of the text encoders needs them on the device: set "
            "prior.offload_encoders=false, or train the denoiser alone"
        )


def start_run(config: Config, prompts: Prompts) -> RunFolder:
    """A new run folder with its settings and prompts."""
    name = f"align {config.align.reward}"
    run = RunFolder.create(replace(config, prompt=name))
    write_json(run.path / "prompts.json", prompts)
    return run


def load_training(config: Config, prompts: Prompts, journal: Journal) -> Training:
    """The models, rewards and guard of a config, ready to train on the prompts."""
    device = resolve_device(config.backend)
    asked = config.prior
    if asked.dtype == "auto":  # a LoRA is trained next to exact weights where that is affordable
        asked = replace(asked, dtype="float32")
    prior = load_prior(asked, device, partial(_report_fewer, journal))
    hinge = config.align.hinge or None
    rewards, manifest = config.rewards, config.prior.manifest
    objectives = build_objectives(config.align.reward, rewards, manifest, device, hinge)
    names = [one.name for one in objectives]
    name, held_out = held_out_score(config.align.guard, names, rewards, config.prior, device)
    training = Training(
        prior,
        config.align,
        objectives,
        prompts,
        (name, held_out),
        config.negative_prompt,
        config.seed,
    )
    cut = [
        prompt
        for prompt in (*prompts.training, *prompts.validation)
        if prior.text_encoders.fit(prompt)[1]
    ]
    if cut:
        journal.warn(
            f"{len(cut)} of the prompts are longer than the text encoder reads and are cut, such "
            f"as {cut[0][:40]!r}"
        )
    if training.learner.trains_text:  # also where the file of --from has text encoders
        _check_encoders_stay(config.prior)
    if len(objectives) == 1:
        journal.warn(
            f"{objectives[0].name} is the only reward: a model soon scores higher and shows less; "
            "add a second one to --reward, such as clip:1, or set align.anchor, and look at sheets/"
        )
    if name == "none":
        journal.warn(
            "no score is held out, so only the spread of the drawings is guarded: "
            "set --guard clip or --guard aesthetic"
        )
    return training


def _report_fewer(journal: Journal, count: int, network: str) -> None:
    journal.warn(f"out of memory: continuing with {count} images in one call of the {network}")
