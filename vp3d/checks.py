"""Refuse a request that cannot work, before anything heavy is loaded."""

from __future__ import annotations

import shlex

from vp3d.config.paths import expand, locate
from vp3d.config.schema import Config, ExportConfig
from vp3d.errors import UserError
from vp3d.prompts import check_negative_prompt, check_prompt, is_in_grammar, load_vocabulary
from vp3d.report.video import require_ffmpeg
from vp3d.runs.folder import RunFolder
from vp3d.system.files import check_output
from vp3d.visual_prompt.make import SCORES_FILE, read_reference
from vp3d.weights.hashes import weight_hashes
from vp3d.weights.locate import check_fetched, find_weights, weight_locations


def changed_weights(run: RunFolder, config: Config) -> str:
    """The first weight file that is not what it was when the run began, "" where all are the same.

    A prior that only draws is left out once the visual prompt is there: nothing reads it any more.
    """
    drawn = (run.visual_prompt / SCORES_FILE).is_file()
    places = [
        place
        for key, place in weight_locations(config)
        if not (drawn and key.startswith("visual_prompt."))
    ]
    noted, now = run.noted_weights(), weight_hashes(places)
    mine = {
        name
        for name in noted
        if any(name == place or name.startswith(f"{place}/") for place in places)
    }
    return next(
        (name for name in sorted(mine | now.keys()) if noted.get(name) != now.get(name)), ""
    )


OUTSIDE_GRAMMAR = (
    "the prompt is outside the grammar that the embedded models were trained on, so the result may not follow it; inside are, "
    'for example, "a red sphere with yellow stripes", "a purple chair with brown legs" and "a pink cone on a green cylinder"'
)


def check_request(config: Config, new: bool, drawn: bool = False) -> None:
    """Refuse what cannot work before anything heavy is loaded; a `new` run must also cut out its picture and have a place.

    drawn: the visual prompt is there, so that what would draw it is not needed.
    """
    for prior in (config.prior, config.visual_prompt.prior):
        vocabulary = load_vocabulary(locate(prior.vocabulary)) if prior.vocabulary else None
        check_prompt(config.prompt, vocabulary)
        check_negative_prompt(config.negative_prompt, vocabulary)
    places = [
        (key, place)
        for key, place in weight_locations(config)
        if not (drawn and key.startswith("visual_prompt."))
    ]
    check_fetched(places)
    for key, place in places:
        if key.startswith("visual_prompt."):  # loaded late, when there is something to draw
            find_weights(place, key)
    check_video(config.export)
    if config.image and new:
        read_reference(config.image, config.visual_prompt, config.prior.resolution)
    if new:
        check_output(expand(config.output_dir))


def is_outside_grammar(config: Config) -> bool:
    """Whether a prior of this run knows the prompt's words and was trained on no such sentence."""
    vocabularies = {
        prior.vocabulary for prior in (config.prior, config.visual_prompt.prior) if prior.vocabulary
    }
    return not all(
        is_in_grammar(config.prompt, load_vocabulary(locate(path))) for path in vocabularies
    )


def check_same_weights(run: RunFolder, config: Config) -> None:
    """Refuse to go on with other weights than a run began with: half of it would be another model's, and its manifest untrue."""
    changed = changed_weights(run, config)
    if changed:
        raise UserError(
            f"{changed} is not the weight file that {run.path} began with (see its manifest.json); put that file back, start a "
            f"new run, or take what there is with `launch.py export {shlex.quote(str(run.path))}`"
        )


def check_video(config: ExportConfig) -> None:
    """Refuse to begin a run whose turntable could not be written at its end."""
    if config.turntable == "mp4":
        require_ffmpeg()


def is_drawn(run: RunFolder) -> bool:
    """Whether a run has its visual prompt: `scores.json` is written last."""
    return (run.visual_prompt / SCORES_FILE).is_file()
