"""The visual prompt: drawing, cut-out, choice, files, reading back, and the user's own picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers.tiny_clip import write_tiny_clip
from tests.helpers.tiny_models import tiny_prior_config
from vp3d.checks import check_request
from vp3d.config.loader import load_config
from vp3d.config.schema import Config, PriorConfig
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.prior import Prior
from vp3d.errors import UserError
from vp3d.rewards.encoders import load_clip
from vp3d.rewards.text_image import ClipText
from vp3d.runs.folder import RunFolder
from vp3d.visual_prompt.make import (
    VisualPrompt,
    VisualPromptRequest,
    load_visual_prompt,
    make_visual_prompt,
)

PROMPT = "a red sphere"
SIDE = 32


class DiscPrior:
    """Draws discs of random colours on grey; picture `flat` has no object, `full` no background."""

    def __init__(self, flat: int = -1, full: int = -1) -> None:
        self.flat, self.full, self.asked = flat, full, {}

    def sample(
        self,
        prompts: list[str],
        negative: str,
        steps: int,
        guidance_scale: float,
        generator: torch.Generator,
    ) -> Tensor:
        self.asked = {
            "prompts": prompts,
            "negative": negative,
            "steps": steps,
            "scale": guidance_scale,
        }
        colors = torch.rand(len(prompts), 3, 1, 1, generator=generator) * 0.5
        place = torch.linspace(-1, 1, SIDE)
        inside = (
            (place[:, None] ** 2 + place[None] ** 2 < 0.36)
            .float()
            .expand(len(prompts), 1, SIDE, SIDE)
            .clone()
        )
        if self.flat >= 0:
            inside[self.flat] = 0.0
        if self.full >= 0:
            inside[self.full] = 1.0
        return colors * inside + 0.8 * (1 - inside)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipText:
    return ClipText(load_clip(str(write_tiny_clip(tmp_path_factory.mktemp("clip")))))


@pytest.fixture(scope="module")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Prior:
    return load_prior(tiny_prior_config(tmp_path_factory.mktemp("prior")))


def run(tmp_path: Path, **changes: object) -> tuple[Config, RunFolder]:
    config = Config(
        prompt=PROMPT, output_dir=str(tmp_path / "out"), prior=PriorConfig(resolution=SIDE)
    )
    for name, value in changes.items():
        setattr(
            config.visual_prompt if hasattr(config.visual_prompt, name) else config, name, value
        )
    return config, RunFolder.create(config)


def request_of(config: Config) -> VisualPromptRequest:
    return VisualPromptRequest(
        config.prompt,
        config.negative_prompt,
        config.image,
        config.prior.resolution,
        config.visual_prompt,
        config.mask,
    )


def make(
    prior: object, clip: ClipText, config: Config, folder: RunFolder, seed: int = 0
) -> VisualPrompt:
    generator = torch.Generator().manual_seed(seed)
    return make_visual_prompt(prior, clip, request_of(config), folder, generator)


def test_the_best_cut_out_is_chosen_and_all_is_kept(clip: ClipText, tmp_path: Path) -> None:
    config, folder = run(
        tmp_path,
        candidates=5,
        ground=0.7,
        steps=7,
        guidance_scale=3.0,
        negative_prompt="Dull, back view",
    )
    prior = DiscPrior()
    found = make(prior, clip, config, folder)
    assert prior.asked == {
        "prompts": ["a red sphere, front view"] * 5,
        "negative": "dull",
        "steps": 7,
        "scale": 3.0,
    }
    assert found.rgb.shape == (1, 3, SIDE, SIDE) and found.mask.shape == (1, 1, SIDE, SIDE)
    truth = (found.candidates[found.chosen] - 0.8).abs().amax(dim=0) > 0.05
    assert torch.equal(found.mask[0, 0] > 0.5, truth)
    torch.testing.assert_close(
        found.rgb[0][:, ~truth], torch.full_like(found.rgb[0][:, ~truth], 0.7), atol=0.003, rtol=0
    )
    text = clip.encoder.text(["a red sphere, front view"])
    naive = [
        float((clip.encoder.image(torch.where(truth, rgb, 0.7)[None]) * text).sum())
        for rgb in found.candidates
    ]
    np.testing.assert_allclose(found.scores, naive, atol=2e-3)
    assert found.chosen == int(np.argmax(found.scores))
    names = {path.name for path in folder.visual_prompt.iterdir()}
    drawn = {f"candidate_{n}.png" for n in range(5)}
    assert names == drawn | {"chosen.png", "cutout.png", "mask.png", "scores.json", "sheet.png"}
    notes = json.loads((folder.visual_prompt / "scores.json").read_text())
    assert (
        notes["scores"] == found.scores
        and notes["chosen"] == found.chosen
        and notes["prompt"] == PROMPT
    )
    with Image.open(folder.visual_prompt / "sheet.png") as sheet:
        assert sheet.width > 5 * 150 and sheet.height > 2 * 150
    assert folder.events("visual_prompt")[0]["chosen"] == found.chosen


class BoxPrior:
    """Draws two boxes side by side, then a box alone."""

    def sample(self, prompts: list[str], *_: object, **__: object) -> Tensor:
        drawn = torch.full((2, 3, SIDE, SIDE), 0.8)
        drawn[:, :, 12:20, 6:14] = drawn[:1, :, 12:20, 18:26] = 0.1
        return drawn


class OneAlone:
    """A reward that prefers one box to two: for the prompt, and more so for a phrase of it."""

    device = torch.device("cpu")
    # For two boxes, for one.
    SCORES = {
        "a cone next to a ball": (0.60, 0.62),
        "a cone": (0.40, 0.80),
        "a ball": (0.40, 0.40),
    }

    def target(self, prompts: list[str]) -> Tensor:
        return torch.tensor(
            [self.SCORES[prompt.removesuffix(", front view")] for prompt in prompts]
        )

    def score(self, rgb: Tensor, target: Tensor) -> Tensor:
        return target[0][((rgb < 0.5).float().mean((1, 2, 3)) < 0.1).long()]


def test_a_picture_of_one_of_two_things_is_not_chosen(tmp_path: Path) -> None:
    config, folder = run(tmp_path, prompt="a cone next to a ball", candidates=2)
    generator = torch.Generator().manual_seed(0)
    found = make_visual_prompt(BoxPrior(), OneAlone(), request_of(config), folder, generator)
    assert found.scores == pytest.approx([0.60, 0.62]) and found.chosen == 0
    assert json.loads((folder.visual_prompt / "scores.json").read_text())["alone"] == pytest.approx(
        [0.40, 0.60]
    )


def test_is_read_back_bit_for_bit(clip: ClipText, tmp_path: Path) -> None:
    config, folder = run(tmp_path)
    made = make(DiscPrior(flat=2), clip, config, folder)
    read = load_visual_prompt(RunFolder.open(folder.path))
    for name in ("rgb", "mask", "candidates"):
        assert torch.equal(getattr(made, name), getattr(read, name)), name
    assert read.scores == made.scores and read.chosen == made.chosen


def test_same_seed_same_prompt(clip: ClipText, tmp_path: Path) -> None:
    config, folder = run(tmp_path)
    first, again = (make(DiscPrior(), clip, config, folder, seed=3) for _ in range(2))
    assert torch.equal(first.rgb, again.rgb) and first.scores == again.scores
    assert not torch.equal(first.rgb, make(DiscPrior(), clip, config, folder, seed=4).rgb)


def test_candidates_that_cannot_be_cut_out_are_passed_over(clip: ClipText, tmp_path: Path) -> None:
    config, folder = run(tmp_path, candidates=3)
    found = make(DiscPrior(flat=0, full=2), clip, config, folder)
    assert found.scores[0] is None and found.scores[2] is None and found.chosen == 1


def test_when_none_can_be_cut_out_the_user_hears_it(clip: ClipText, tmp_path: Path) -> None:
    config, folder = run(tmp_path, candidates=1)
    with pytest.raises(UserError, match="none of the 1 drawn pictures") as caught:
        make(DiscPrior(flat=0), clip, config, folder)
    assert "\n" not in str(caught.value) and "--image" in str(caught.value)
    sheet = folder.visual_prompt / "sheet.png"  # what was drawn can be looked at
    with Image.open(sheet) as picture:
        assert str(sheet) in str(caught.value) and picture.width >= SIDE


def test_a_ragged_cut_out_is_not_chosen_whatever_its_reward(clip: ClipText, tmp_path: Path) -> None:
    def faint(pictures: Tensor, best: int) -> Tensor:
        fade = torch.linspace(0.0, 1.0, SIDE)  # the object has the ground's colour at its left edge
        object_ = (pictures[best] - 0.8).abs().amax(dim=0, keepdim=True) > 0.05
        pictures[best] = torch.where(object_, 0.8 - 0.12 * fade, pictures[best])
        return pictures

    class FaintPrior(DiscPrior):
        best = -1

        def sample(self, *args: Any, **options: Any) -> Tensor:
            drawn = super().sample(*args, **options)
            return drawn if self.best < 0 else faint(drawn, self.best)

    config, folder = run(tmp_path / "clear", candidates=4)
    prior = FaintPrior()
    prior.best = make(prior, clip, config, folder).chosen
    config, folder = run(tmp_path / "faint", candidates=4)
    found = make(prior, clip, config, folder)
    notes = json.loads((folder.visual_prompt / "scores.json").read_text())
    assert notes["ragged"] == [prior.best] and notes["steadiness"][prior.best] < min(
        s for n, s in enumerate(notes["steadiness"]) if n != prior.best
    )
    rest = {n: s for n, s in enumerate(found.scores) if n != prior.best}
    assert found.chosen == max(rest, key=rest.__getitem__)


def test_drawing_words_are_for_the_drawing_alone(
    clip: ClipText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    real = clip.target
    monkeypatch.setattr(clip, "target", lambda prompts: scored.extend(prompts) or real(prompts))
    config, folder = run(tmp_path, candidates=2, words="plain white background")
    prior = DiscPrior()
    make(prior, clip, config, folder)
    assert prior.asked["prompts"] == ["a red sphere, front view, plain white background"] * 2
    assert "a red sphere, front view" in scored and not any(
        "background" in prompt for prompt in scored
    )


def test_scenes_are_not_taken_for_objects(clip: ClipText, tmp_path: Path) -> None:
    """Soft hills of colour up to the border: the cut-out depends on the tolerances."""

    class ScenePrior(DiscPrior):
        def sample(
            self, prompts: list[str], *_: object, generator: torch.Generator, **__: object
        ) -> Tensor:
            coarse = 0.3 + 0.4 * torch.rand(len(prompts), 3, 5, 5, generator=generator)
            return torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")

    config, folder = run(tmp_path / "scenes", candidates=4)
    with pytest.raises(
        UserError,
        match="none of the 4 drawn .* a lower visual_prompt.steadiness=X, or give a picture",
    ):
        make(ScenePrior(), clip, config, folder)
    assert (folder.visual_prompt / "sheet.png").is_file() and not (
        folder.visual_prompt / "scores.json"
    ).exists()
    config, folder = run(tmp_path / "anyway", candidates=4, steadiness=0.0)
    make(ScenePrior(), clip, config, folder)
    notes = json.loads((folder.visual_prompt / "scores.json").read_text())
    assert any(score is not None for score in notes["scores"]) and max(notes["steadiness"]) < 0.8


def test_a_real_diffusion_pipeline_draws(tiny_prior: Prior, clip: ClipText, tmp_path: Path) -> None:
    config, folder = run(tmp_path, candidates=2, steps=2, cutout_tolerance=0.02, steadiness=0.0)
    found = make(tiny_prior, clip, config, folder)
    assert found.candidates.shape == (2, 3, SIDE, SIDE) and bool(torch.isfinite(found.rgb).all())
    assert found.scores[found.chosen] == max(s for s in found.scores if s is not None)


def test_damaged_run_folder(clip: ClipText, tmp_path: Path) -> None:
    config, folder = run(tmp_path)
    make(DiscPrior(), clip, config, folder)
    (folder.visual_prompt / "mask.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(UserError, match="start a new run"):
        load_visual_prompt(folder)
    (folder.visual_prompt / "scores.json").unlink()
    with pytest.raises(UserError, match="start a new run"):
        load_visual_prompt(folder)


def picture(path: Path, alpha: bool, ground: int = 230) -> Path:
    """A 120 x 160 picture of a red disc of radius 30, off centre, with alpha or on plain ground."""
    y, x = np.mgrid[:120, :160]
    inside = (x - 50) ** 2 + (y - 60) ** 2 < 900
    values = np.full((120, 160, 4), [ground, ground, ground, 0 if alpha else 255], dtype=np.uint8)
    values[inside] = [200, 30, 40, 255]
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("alpha", [True, False])
def test_the_users_picture(alpha: bool, clip: ClipText, tmp_path: Path) -> None:
    config, folder = run(tmp_path, image=str(picture(tmp_path / "style.png", alpha)), ground=0.9)
    prior = DiscPrior()
    found = make(prior, clip, config, folder)
    assert prior.asked == {} and len(found.scores) == 1 and found.chosen == 0
    assert found.rgb.shape == (1, 3, SIDE, SIDE)
    area = float((found.mask > 0.5).float().mean())
    assert area == pytest.approx(np.pi / 4 * 0.8**2, abs=0.05)
    torch.testing.assert_close(
        found.rgb[0, :, SIDE // 2, SIDE // 2], torch.tensor([200, 30, 40]) / 255, atol=0.01, rtol=0
    )
    torch.testing.assert_close(found.rgb[0, :, 0, 0], torch.full((3,), 0.9), atol=0.003, rtol=0)
    assert json.loads((folder.visual_prompt / "scores.json").read_text())["source"] == config.image
    assert torch.equal(load_visual_prompt(folder).rgb, found.rgb)


def image_refusal(path: Path, clip: ClipText, tmp_path: Path) -> str:
    config, folder = run(tmp_path, image=str(path))
    with pytest.raises(UserError) as caught:
        make(DiscPrior(), clip, config, folder)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"--image {path}")
    return str(caught.value)


def test_pictures_without_an_object_are_refused_with_advice(clip: ClipText, tmp_path: Path) -> None:
    flat = np.full((64, 64, 4), 128, dtype=np.uint8)
    flat[..., 3] = 255
    Image.fromarray(flat).save(tmp_path / "flat.png")
    clear, full = flat.copy(), flat.copy()
    clear[..., 3] = 0
    full[0, 0, 3] = 0
    Image.fromarray(clear).save(tmp_path / "clear.png")
    Image.fromarray(full).save(tmp_path / "full.png")
    for name, cause in [
        ("flat", "no object"),
        ("clear", "no object"),
        ("full", "fills the whole picture"),
    ]:
        message = image_refusal(tmp_path / f"{name}.png", clip, tmp_path)
        assert cause in message and "transparent or plain background" in message


def test_files_that_are_no_pictures_are_refused(clip: ClipText, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    assert "not a picture" in image_refusal(tmp_path / "text.png", clip, tmp_path)
    assert "does not exist" in image_refusal(tmp_path / "none.png", clip, tmp_path)


def test_a_doubtful_cut_out_is_reported_with_its_mask(clip: ClipText, tmp_path: Path) -> None:
    y, x = np.mgrid[:128, :128] / 128
    bust = ((x - 0.5) / 0.25) ** 2 + ((y - 0.45) / 0.25) ** 2 < 1
    values = np.where((bust | (y > 0.4))[..., None], [30, 60, 160], 255).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "bust.png")
    config, folder = run(tmp_path, image=str(tmp_path / "bust.png"))
    found = make(DiscPrior(), clip, config, folder)
    assert len(found.warnings) == 1 and "--mask FILE" in found.warnings[0]
    cutout = folder.visual_prompt / "cutout.png"
    assert str(cutout) in found.warnings[0] and cutout.is_file()
    assert (folder.visual_prompt / "mask.png").is_file()
    notes = json.loads((folder.visual_prompt / "scores.json").read_text())
    assert notes["warnings"] == list(found.warnings) and notes["mask"] == ""


def test_a_mask_of_the_users(clip: ClipText, tmp_path: Path) -> None:
    image = picture(tmp_path / "style.png", alpha=False)
    mask = np.zeros((120, 160), dtype=np.uint8)
    mask[20:50, 10:40] = 255  # not where the disc is
    Image.fromarray(mask).save(tmp_path / "mask.png")
    config, folder = run(tmp_path, image=str(image))
    config.mask = str(tmp_path / "mask.png")
    found = make(DiscPrior(), clip, config, folder)
    assert float((found.mask > 0.5).float().mean()) == pytest.approx(0.8**2, abs=0.06)
    assert found.warnings == ()
    notes = json.loads((folder.visual_prompt / "scores.json").read_text())
    assert notes["mask"] == config.mask


def test_an_animation_says_which_frame_is_used(clip: ClipText, tmp_path: Path) -> None:
    first = Image.new("RGB", (64, 64), "white")
    second = first.copy()
    second.paste((200, 30, 30), (16, 16, 48, 48))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    config, folder = run(tmp_path, image=str(tmp_path / "a.gif"))
    assert "frame 2" in make(DiscPrior(), clip, config, folder).notes[0]


def test_a_mask_without_a_picture_is_refused() -> None:
    config = load_config("draft", prompt=PROMPT, mask="mask.png")
    with pytest.raises(UserError, match="give the picture with --image"):
        check_request(config, new=True)
