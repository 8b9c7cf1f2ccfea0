"""The weights in the repository: whole, small enough, and as good as their manifest says (on fewer
pictures).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vp3d.config.loader import load_config
from vp3d.config.schema import PriorConfig
from vp3d.diffusion.load import load_prior
from vp3d.embedded import measure
from vp3d.evaluate import toybench
from vp3d.prompts import check_prompt, load_vocabulary
from vp3d.weights.manifest import verify_files
from vp3d.worlds.toybox.scenes import vocabulary

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "toybox"


def test_files_are_whole_and_small_enough() -> None:
    verify_files(ASSETS / "MANIFEST.json", ASSETS)
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 70e6


def test_vocabulary_is_that_of_the_grammar_and_knows_the_suite() -> None:
    assert json.loads((ASSETS / "vocabulary.json").read_text()) == json.loads(
        json.dumps(vocabulary())
    )
    known = load_vocabulary(ASSETS / "vocabulary.json")
    for line in (ASSETS.parent / "prompts" / "gallery.txt").read_text().splitlines():
        if not line.startswith("#"):
            check_prompt(line.split(" seed=")[0], known)


@pytest.mark.parametrize(
    ("name", "slack"),
    [("autoencoder", 1.0), ("clip", 0.1), ("measuring_clip", 0.1), ("judge", 0.08)],
)
def test_measured_figures_stand(name: str, slack: float) -> None:
    """128 pictures instead of 512: within `slack` of the figure in the manifest (1 dB.

    0.1 and 0.08 are three sigma and more).
    """
    stated = json.loads((ASSETS / "MANIFEST.json").read_text())["figures"][name]["value"]
    found = measure.measures_of(None)[name](128)
    assert found["all"] > stated - slack


def test_the_clip_that_measures_is_not_the_one_that_rewards() -> None:
    """Other weights from the first layer on, and the rewards never load it."""
    measuring, rewarding = (
        load_file(ASSETS / name / "open_clip_model.safetensors")
        for name in ("measuring_clip", "clip")
    )
    assert measuring.keys() == rewarding.keys()
    first = "visual.conv1.weight"
    a, b = (weights[first].float().flatten() for weights in (measuring, rewarding))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.5
    assert toybench.JUDGES[1][0] == str(ASSETS / "measuring_clip")
    assert load_config("draft", [], []).rewards.clip == "assets/toybox/clip"


def test_the_embedded_denoiser_runs_in_bfloat16() -> None:
    latents, picture = (
        torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.full((1, 3, 64, 64), 0.7),
    )
    told = []
    for dtype in ("float32", "bfloat16"):
        prior = load_prior(PriorConfig(dtype=dtype))
        image = prior.embed_visual_prompt(picture)
        with torch.no_grad():
            told.append(
                prior.predict_noise(
                    latents, torch.tensor([500]), prior.encode_text(["a red sphere"]), image
                )
            )
    assert (
        told[1].dtype == torch.float32
        and (told[0] - told[1]).abs().mean() < 0.05 * told[0].abs().mean()
    )


@pytest.mark.parametrize("native", [False, True])
def test_by_itself_only_the_denoiser_is_in_bfloat16_and_only_where_that_is_quicker(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    prior = load_prior(PriorConfig())
    assert prior.dtype == prior.unet.dtype == (torch.bfloat16 if native else torch.float32)
    others = [
        prior.vae,
        *(tower for _, tower in prior.text_encoders.towers),
        prior.image_encoder.tower,
    ]
    assert all(p.dtype == torch.float32 for module in others for p in module.parameters())
