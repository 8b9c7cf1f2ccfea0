"""Measure the embedded models on held-out captions: `python -m vp3d.embedded.measure [FIGURE ...]`.

"Objects and colours right" means that the judge names the nouns of both objects, both main colours
and the colour of the part or pattern as the caption does. Pictures are drawn from the front left,
where every part is visible. A drawing follows its view word if, among the eight level views of the
true scene, it is nearest to the named one or to one that looks the same (the back of a table looks
like its front).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vp3d.config.paths import ASSETS, MANIFEST
from vp3d.config.schema import PriorConfig, VisualPromptConfig
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.prior import Prior
from vp3d.diffusion.view_classifier import guess_views, judge_errors
from vp3d.embedded.sample_sheet import grid
from vp3d.embedded.save import save_manifest
from vp3d.metrics.attribute_judge import Judge, judge_views, load_judge
from vp3d.metrics.attributes import JUDGE_BACKGROUND, check_view
from vp3d.prompts import SECTORS
from vp3d.report.pictures import AZIMUTHS, ELEVATION_DEG, save_image
from vp3d.rewards.encoders import load_clip
from vp3d.system.console import Parser, run_program, say
from vp3d.system.files import check_output
from vp3d.worlds.toybox.data import (
    HEADS,
    TOYBOX,
    attribute_targets,
    attributes,
    draw_specs,
    heldout_pictures,
    to_tensor,
)
from vp3d.worlds.toybox.images import GROUNDS, render_spec
from vp3d.worlds.toybox.scenes import COMPOUNDS, Spec, caption, kind_of


@dataclass(frozen=True)
class Goal:
    """What a figure means.

    Attributes:
        meaning: the figure in words.
        value: the least value that is good enough.
        count: held-out captions that it is measured on.
    """

    meaning: str
    value: float
    count: int = 512


GOALS = {
    "autoencoder": Goal("PSNR of held-out renders, dB", 30.0),
    "clip": Goal("right caption among 64", 0.90),
    "measuring_clip": Goal("right caption among 64, by the CLIP that only measures", 0.90),
    "judge": Goal("all visible attributes right", 0.97),
    "text_to_image": Goal("objects and colours right", 0.90),
    "held_out_pairs": Goal("objects and colours right, unseen colour-object pairs", 0.80),
    "image_prompt": Goal("objects and colours of the reference kept, empty text", 0.85),
    "view_words": Goal("compounds drawn from the view that was asked for", 0.80, 256),
    "views_named": Goal(
        "views of true compounds that the denoiser recognises, or takes for a neighbour", 0.90, 256
    ),
}
VIEW = "front left view"
# Two true views whose mean absolute difference is below this count as the same view
SAME_VIEW = 0.02

Figure = dict[str, float]
"""The figure under "all", and its value by kind of caption if there are kinds."""


def measure_autoencoder(count: int) -> Figure:
    """Mean PSNR in dB over held-out renders."""
    prior, rgb = load_prior(PriorConfig()), to_tensor(heldout_pictures(count).images)
    with torch.no_grad():
        error = (prior.decode(prior.encode_images(rgb)) - rgb).square().mean((1, 2, 3))
    return {"all": float((-10.0 * torch.log10(error)).mean())}


def measure_clip(count: int, folder: str = "assets/toybox/clip") -> Figure:
    """Share of pictures whose own caption scores highest among 64 captions.

    An equal caption of another picture counts as right. "cosine" is the mean score of a picture's
    own caption, from which `rewards.text_image.hinge` is set; "cosine's lower quarter" is the lower
    quartile of that score.
    """
    pictures, encoder = heldout_pictures(count), load_clip(folder)
    with torch.no_grad():
        image = encoder.image(to_tensor(pictures.images))
    captions = [pictures.caption(i) for i in range(count)]
    text, right = encoder.text(captions), []
    for first in range(0, count, 64):
        best = first + (image[first : first + 64] @ text[first : first + 64].T).argmax(1)
        right += [captions[b] == captions[first + i] for i, b in enumerate(best.tolist())]
    own = (image * text).sum(dim=1)
    return {
        "all": float(np.mean(right)),
        "cosine": float(own.mean()),
        "cosine's lower quarter": float(own.quantile(0.25)),
    }


def measure_judge(count: int) -> Figure:
    """Share of held-out renders of which the judge names every visible attribute."""
    pictures, judge = heldout_pictures(count), load_judge(ASSETS / "judge", MANIFEST)
    answers = attribute_targets(pictures)
    named = judge_views(judge, to_tensor(pictures.images))
    values = list(HEADS.items())
    right = [
        all(a < 0 or names[a] == row[head] for a, (head, names) in zip(answer, values, strict=True))
        for answer, row in zip(answers, named, strict=True)
    ]
    return {"all": float(np.mean(right))}


def draw(
    prior: Prior, texts: list[str], references: Tensor | None, report: Callable[[str], None]
) -> Tensor:
    """Drawings [N, 3, 64, 64] of N texts, in batches of 32.

    references: [N, 3, 64, 64] in [0, 1] or None, the image prompts. `report` gets progress lines.
    """
    config, parts = VisualPromptConfig(), []
    generator = torch.Generator().manual_seed(0)
    for first in range(0, len(texts), 32):
        batch = texts[first : first + 32]
        image = (
            None
            if references is None
            else prior.embed_visual_prompt(references[first : first + 32])
        )
        parts.append(
            prior.sample(batch, "", config.steps, config.guidance_scale, generator, image=image)
        )
        report(f"drawn {first + len(batch)}/{len(texts)}")
    return torch.cat(parts)


def share_right(judge: Judge, rgb: Tensor, specs: list[Spec]) -> Figure:
    """Share of pictures whose objects, colours and colour of part or pattern are those of `specs`.

    rgb [N, 3, H, W] in [0, 1], one picture for each spec. By kind of caption, too.
    """
    checks = [
        check_view(named, attributes(s))
        for named, s in zip(judge_views(judge, rgb), specs, strict=True)
    ]
    kinds: dict[str, list[bool]] = {"all": [c["right"] and c["accent_a"] for c in checks]}
    for right, spec in zip(list(kinds["all"]), specs, strict=True):
        kinds.setdefault(kind_of(spec), []).append(right)
    return {kind: float(np.mean(rows)) for kind, rows in kinds.items()}


def measure_view_words(count: int, sheet: Path | None = None) -> Figure:
    """Share of drawn compounds nearest (L1) to the true scene from the named view, by view."""
    specs = [
        s
        for s in draw_specs(np.random.default_rng(78), 4 * count, True)
        if s.noun in COMPOUNDS and not s.relation
    ]
    specs = specs[:count]
    requested = [i % len(SECTORS) for i in range(len(specs))]
    texts = [f"{caption(s)}, {SECTORS[v]}" for s, v in zip(specs, requested, strict=True)]
    rgb = draw(load_prior(PriorConfig()), texts, None, say)
    kinds: dict[str, list[bool]] = {"all": []}
    for picture, spec, view in zip(rgb.permute(0, 2, 3, 1).numpy(), specs, requested, strict=True):
        kinds["all"].append(shows_view(picture, spec, view))
        kinds.setdefault(SECTORS[view], []).append(kinds["all"][-1])
    if sheet is not None:
        write_sheet(rgb[:64], sheet)
    return {kind: float(np.mean(rows)) for kind, rows in kinds.items()}


def measure_views_named(count: int) -> Figure:
    """Mean `diffusion.view_classifier` agreement of true compounds, `count` views in all.

    "by CLIP" is the same with CLIP's cosines instead of the denoiser's errors.
    """
    specs = [
        s
        for s in draw_specs(np.random.default_rng(79), count, True)
        if s.noun in COMPOUNDS and not s.relation
    ]
    prior, encoder, generator = (
        load_prior(PriorConfig()),
        load_clip("assets/toybox/clip"),
        torch.Generator().manual_seed(0),
    )
    kinds: dict[str, list[float]] = {"all": [], "by CLIP": []}
    for spec in specs[: max(count // len(SECTORS), 1)]:
        rgb = to_tensor(
            render_spec(
                spec, list(AZIMUTHS), elevation_deg=ELEVATION_DEG, size=64, ground=JUDGE_BACKGROUND
            )
        )
        kinds["all"].append(guess_views(prior, caption(spec), rgb, generator).view_agreement)
        with torch.no_grad():
            alike = (
                encoder.image(rgb)
                @ encoder.text([f"{caption(spec)}, {view}" for view in SECTORS]).T
            )
        kinds["by CLIP"].append(judge_errors(1.0 - alike.double().numpy()).view_agreement)
    return {kind: float(np.mean(rows)) for kind, rows in kinds.items()}


def shows_view(picture: np.ndarray, spec: Spec, view: int) -> bool:
    """Whether `picture` [64, 64, 3] in [0, 1] shows the scene of `spec` from view `view`.

    `view` is a number of `SECTORS`, level.
    """
    ground = min(GROUNDS, key=lambda g: abs(g - np.median(picture[0])))
    azimuths = [45.0 * i for i in range(len(SECTORS))]
    true = render_spec(spec, azimuths, elevation_deg=10.0, size=64, ground=ground) / 255.0
    nearest = int(np.abs(true - picture).mean((1, 2, 3)).argmin())
    return nearest == view or bool(np.abs(true[nearest] - true[view]).mean() < SAME_VIEW)


def measure_drawing(count: int, pairs: bool, by_image: bool, sheet: Path | None = None) -> Figure:
    """Share of right drawings of held-out captions, by text or (`by_image`) by image prompt alone.

    `pairs` takes captions with held-out colour-object pairs. `sheet` is a PNG of some drawings.
    """
    # image prompts are front views, about one view in four
    pictures = heldout_pictures(6 * count if by_image else count, pairs=pairs)
    keep = list(range(count))
    if by_image:
        views = [
            i
            for i in range(len(pictures))
            if pictures.view(i) in (VIEW, "front right view", "front view")
        ]
        keep = views[:count]
    specs = [pictures.specs[pictures.scene_of[i]] for i in keep]
    references = to_tensor(pictures.images[keep]) if by_image else None
    texts = [""] * count if by_image else [f"{caption(s)}, {VIEW}" for s in specs]
    rgb = draw(load_prior(PriorConfig()), texts, references, say)
    if sheet is not None:
        shown = (
            rgb[:64]
            if references is None
            else torch.stack([references[:32], rgb[:32]], 1).flatten(0, 1)
        )
        write_sheet(shown, sheet)
    return share_right(load_judge(ASSETS / "judge", MANIFEST), rgb, specs)


def write_sheet(rgb: Tensor, path: Path) -> None:
    """Up to 64 pictures [N, 3, 64, 64] as one PNG, sixteen a row, doubled in size."""
    image = grid(rgb, 16)
    save_image(image.resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS), path)


def measures_of(sheets: Path | None) -> dict[str, Callable[[int], Figure]]:
    """The functions that measure the figures of `GOALS`, by name; each takes the count.

    Args:
        sheets: a folder for pictures of what was drawn; None for no pictures.
    """

    def drawing(pairs: bool, by_image: bool, name: str) -> Callable[[int], Figure]:
        return lambda n: measure_drawing(n, pairs, by_image, sheets and sheets / f"{name}.png")

    return {
        "autoencoder": measure_autoencoder,
        "clip": measure_clip,
        "measuring_clip": lambda n: measure_clip(n, "assets/toybox/measuring_clip"),
        "judge": measure_judge,
        "text_to_image": drawing(False, False, "text_to_image"),
        "held_out_pairs": drawing(True, False, "held_out_pairs"),
        "image_prompt": drawing(False, True, "image_prompt"),
        "view_words": lambda n: measure_view_words(n, sheets and sheets / "view_words.png"),
        "views_named": measure_views_named,
    }


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the figures to MANIFEST.json."""
    parser = Parser(prog="python -m vp3d.embedded.measure", description=__doc__)
    parser.add_argument(
        "figures", nargs="*", metavar="FIGURE", help=f"any of: {', '.join(GOALS)} (default: all)"
    )
    parser.add_argument(
        "--count", type=int, help="held-out captions for each figure (512, 256 for those of views)"
    )
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets of the drawings")
    parser.add_argument("--dry", action="store_true", help="do not write MANIFEST.json")
    options = parser.parse_args(argv)
    unknown = [f for f in options.figures if f not in GOALS]
    if unknown:
        parser.error(f"unknown figure {unknown[0]!r}; choose from {', '.join(GOALS)}")
    if options.count is not None and options.count < 1:
        parser.error("--count takes a whole number of 1 or more")
    if options.sheets:
        check_output(options.sheets, "--sheets FOLDER")

    measures = measures_of(options.sheets)
    found = {}
    for name in options.figures or GOALS:
        goal = GOALS[name]
        count = options.count or goal.count
        kinds = measures[name](count)
        value = kinds.pop("all")
        found[name] = {
            "value": round(value, 4),
            "goal": goal.value,
            "count": count,
            "what": goal.meaning,
        }
        verdict = "reached" if value >= goal.value else "below"
        sys.stdout.write(
            f"{name:15s} {value:8.3f}  goal {goal.value:6.2f}  {verdict:7s}  {goal.meaning}"
            f" ({count} held-out)\n"
        )
        if kinds:
            sys.stdout.write(
                "    " + ", ".join(f"{k} {v:.2f}" for k, v in sorted(kinds.items())) + "\n"
            )
        sys.stdout.flush()
    if not options.dry:
        save_manifest(ASSETS, TOYBOX.licence, found)


if __name__ == "__main__":
    run_program("measure", main)
