"""Refuse a request that cannot work, before anything heavy is loaded."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from vp3d.align.sampler import check_reward
from vp3d.config.addresses import check_places
from vp3d.config.identity import stage_settings
from vp3d.config.paths import expand, locate, program
from vp3d.config.schema import Config, ExportConfig
from vp3d.errors import UserError
from vp3d.prompt_reading import read_prompt
from vp3d.prompt_world import EmbeddedWorld, is_open, prior_of, shipped_world, world_of
from vp3d.prompts import (
    check_negative_prompt,
    check_prompt,
    is_in_grammar,
    load_vocabulary,
)
from vp3d.report.video import require_ffmpeg
from vp3d.runs.folder import RunFolder
from vp3d.runs.migrate import FIRST_STAGE, checkpoint_folder, provenance_file
from vp3d.system.files import check_output
from vp3d.train import checkpoint
from vp3d.train.loop import check_same_settings
from vp3d.visual_prompt.make import SCORES_FILE, read_reference
from vp3d.weights.hashes import is_other, weight_hashes
from vp3d.weights.locate import check_fetched, find_weights, weight_locations

OUTSIDE_GRAMMAR = (
    "the prompt is outside the grammar that the embedded models were trained on, so the result may "
    'not follow it; prompts inside it are, for example, "a red sphere with yellow stripes", '
    '"a purple chair with brown legs" and "a pink cone on a green cylinder"'
)


def check_request(
    config: Config, new: bool, drawn: bool = False, scores: Collection[str] = ()
) -> None:
    """Refuse a request that cannot work: unknown words, missing weights, no ffmpeg, no disk.

    Args:
        config: the request.
        new: a new run, whose picture must be cut out and whose folder must be writable.
        drawn: the visual prompt is there, so that what would draw it is not needed.
        scores: names of the caller's own rewards of a steered drawing.
    """
    if not config.prompt.strip():
        raise UserError('the prompt is empty; say what to make: "a red mushroom with a white stem"')
    if new:
        check_places(config)
    for prior in (config.prior, config.visual_prompt.prior):
        vocabulary = load_vocabulary(locate(prior.vocabulary)) if prior.vocabulary else None
        check_prompt(config.prompt, vocabulary)
        check_negative_prompt(config.negative_prompt, vocabulary)
    locations = needed_weights(config, drawn)
    check_fetched(locations)
    for key, location in locations:
        if key.startswith("visual_prompt."):  # loaded late, when there is something to draw
            find_weights(location, key)
    check_video(config.export)
    if config.visual_prompt.sampler == "svdd" and not drawn:
        check_reward(config.visual_prompt.svdd.reward, scores)
    if config.mask and not config.image:
        raise UserError("--mask is the mask of a picture: give the picture with --image")
    if config.image and new:
        resolution = config.prior.resolution
        read_reference(config.image, config.mask, config.visual_prompt, resolution)
    if new:
        check_output(expand(config.output_dir))


def read_prompts(config: Config) -> tuple[Config, list[str]]:
    """The request with its prompts in the words of its priors, and a line on each change.

    Of the embedded worlds it gets the models of the one whose words it uses (`choose_world`). The
    config itself is returned if its models are given and every word is known.
    """
    config, notes = choose_world(config), []
    for prior in (config.prior, config.visual_prompt.prior):
        vocabulary = load_vocabulary(locate(prior.vocabulary)) if prior.vocabulary else None
        prompt = read_prompt(config.prompt, vocabulary)
        negative = read_prompt(config.negative_prompt, vocabulary)
        if (prompt.text, negative.text) != (config.prompt, config.negative_prompt):
            config = dataclasses.replace(config, prompt=prompt.text, negative_prompt=negative.text)
        notes += [prompt.note(), negative.note("negative prompt")]
    return config, [note for note in notes if note]


def choose_world(config: Config) -> Config:
    """The request with the models of the embedded world whose words its prompt uses.

    The config itself is returned if it names other models, if its models were chosen already, or
    if it has no prompt. If no world knows every word, the one that misses the fewest is taken, and
    `check_request` refuses the prompt with the words of that world.
    """
    if not config.prompt.strip() or not _is_open(config):
        return config
    return _with_world(config, world_of(config.prompt, config.negative_prompt))


def in_world(config: Config, name: str) -> Config:
    """The request with the models of the shipped world `name`, unless it names other models.

    Raises:
        UserError: The models of that world are not there.
    """
    return _with_world(config, shipped_world(name)) if _is_open(config) else config


def _is_open(config: Config) -> bool:
    draws = config.visual_prompt.prior.path
    return is_open(config.embedded, config.prior, draws, config.rewards.clip)


def _with_world(config: Config, world: EmbeddedWorld) -> Config:
    prior = prior_of(world, config.prior)
    rewards = dataclasses.replace(config.rewards, clip=world.path("clip"))
    return dataclasses.replace(config, prior=prior, rewards=rewards, embedded="given")


def needed_weights(config: Config, drawn: bool) -> list[tuple[str, str]]:
    """(config key, location) of the weights a run still reads.

    drawn: the visual prompt is there, so a prior that only draws is not read any more.
    """
    return [
        (key, location)
        for key, location in weight_locations(config)
        if not (drawn and key.startswith("visual_prompt."))
    ]


def is_outside_grammar(config: Config) -> bool:
    """Whether a prior of this run knows the prompt's words but was trained on no such sentence."""
    priors = (config.prior, config.visual_prompt.prior)
    vocabularies = {prior.vocabulary for prior in priors if prior.vocabulary}
    return not all(
        is_in_grammar(config.prompt, load_vocabulary(locate(path))) for path in vocabularies
    )


def changed_weights(run: RunFolder, config: Config) -> str:
    """The first weight file that is not what it was when the run began, "" if all are the same."""
    locations = [location for _, location in needed_weights(config, is_drawn(run))]
    recorded, now = run.recorded_weights(), weight_hashes(locations)
    read = {
        name
        for name in recorded
        if any(name == location or name.startswith(f"{location}/") for location in locations)
    }
    names = sorted(read | now.keys())
    return next((name for name in names if is_other(recorded.get(name), now.get(name))), "")


def check_same_weights(run: RunFolder, config: Config) -> None:
    """Refuse to resume with other weights than the run began with.

    Half of the asset would be another model's, and the run's provenance would be wrong.
    """
    changed = changed_weights(run, config)
    if changed:
        raise UserError(
            f"{changed} is not the weight file that {run.path} began with (see its "
            f"{provenance_file(run.path).name}); put that file back, start a new run, or export "
            f"what there is: `{program()} export {shlex.quote(str(run.path))}`"
        )


def check_unchanged(run: RunFolder, current: Mapping[str, Any], stage: str = FIRST_STAGE) -> None:
    """Refuse to resume with other settings than the newest checkpoint was made with.

    The error names the keys. A damaged checkpoint is left to the loop, which takes the one before.

    Args:
        run: the run folder, of this version or an older one.
        current: the settings that the stage depends on, from the config at hand.
        stage: the stage that would be resumed.
    """
    paths = checkpoint.list_checkpoints(checkpoint_folder(run.path, stage))
    if not paths:
        return
    try:
        meta = checkpoint.read_meta(paths[-1])
    except ValueError:
        return
    default = {**stage_settings(Config(), stage), "extra_rewards": [], "new_field": ""}
    check_same_settings(run, paths[-1], meta, current, default)


def check_video(config: ExportConfig) -> None:
    """Refuse to start a run whose turntable could not be written at its end."""
    if config.turntable == "mp4":
        require_ffmpeg()


def is_drawn(run: RunFolder) -> bool:
    """Whether a run has its visual prompt: `scores.json` is written last."""
    return (run.visual_prompt / SCORES_FILE).is_file()
