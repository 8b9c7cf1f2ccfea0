"""What the embedded denoiser takes views of true scenes for, and of a thing with two faces.

The shares by hand.
"""

from __future__ import annotations

import numpy as np
import torch

from vp3d.config.schema import PriorConfig
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.view_classifier import CLEAR_MARGIN, guess_views, judge_errors, view_errors
from vp3d.prompts import SECTORS
from vp3d.worlds.toybox.data import to_tensor
from vp3d.worlds.toybox.images import render_spec
from vp3d.worlds.toybox.scenes import parse_caption

AZIMUTHS = [45.0 * k for k in range(len(SECTORS))]


def test_views_of_true_scenes_are_named_and_a_second_face_is_found() -> None:
    prior = load_prior(PriorConfig())
    for prompt in ("a red chair", "a blue car"):
        rgb = to_tensor(
            render_spec(parse_caption(prompt), AZIMUTHS, elevation_deg=15.0, size=64, ground=0.7)
        )
        seen = guess_views(prior, prompt, rgb, torch.Generator().manual_seed(0))
        assert seen.view_agreement >= 0.75 and seen.janus == 0.0, (prompt, seen)
        faced = rgb[[0, 1, 2, 1, 0, 7, 6, 7]]  # the front again behind
        assert guess_views(prior, prompt, faced, torch.Generator().manual_seed(0)).janus >= 2 / 3, (
            prompt
        )


def test_equal_seeds_give_equal_errors_and_view_words_of_the_prompt_do_not_count() -> None:
    prior = load_prior(PriorConfig())
    rgb = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    prompts = ("a red chair", "a red chair, back view")
    first, again = (
        view_errors(prior, prompt, rgb, torch.Generator().manual_seed(2)) for prompt in prompts
    )
    assert first.shape == (8, 8) and np.isfinite(first).all() and np.array_equal(first, again)


def test_shares_of_known_errors() -> None:
    errors = 1.0 - np.eye(8)
    assert judge_errors(errors).view_agreement == 1.0 and judge_errors(errors).janus == 0.0
    neighbours = np.roll(errors, 1, axis=1)
    assert judge_errors(neighbours).view_agreement == 1.0 and judge_errors(neighbours).named == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        0,
    ]
    opposite = np.roll(errors, 4, axis=1)
    assert judge_errors(opposite).view_agreement == 0.0 and judge_errors(opposite).janus == 1.0
    even = np.ones((8, 8))
    even[:, 0] -= CLEAR_MARGIN / 2
    assert judge_errors(even).janus == 0.0, "no side is clearly another"
    even[4, 0] -= CLEAR_MARGIN
    assert judge_errors(even).janus == 1 / 3
