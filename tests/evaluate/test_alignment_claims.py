"""The claims on alignment: their figures by hand, and their measurements on tiny models."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_models import tiny_prior_config
from vp3d.cli import main
from vp3d.cli.generate import config_of
from vp3d.config.schema import AlignConfig, RewardsConfig
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.prior import Prior
from vp3d.engine.pool import Pool
from vp3d.errors import DivergedError
from vp3d.evaluate import toybench
from vp3d.evaluate.claims import (
    alignprop_assets,
    alignprop_efficiency,
    alignprop_few_steps,
    alignprop_lab,
    alignprop_mix,
    alignprop_truncation,
)
from vp3d.evaluate.claims.alignprop_efficiency import better_half
from vp3d.evaluate.claims.alignprop_truncation import coarse_share, equal_marks
from vp3d.evaluate.claims.frame import Bench, Finding
from vp3d.evaluate.runner import Settings
from vp3d.tuning.rewards import build_objectives
from vp3d.tuning.session import Prompts, Training

CONFIG = AlignConfig(reward="compress", steps=2, batch=2, k="fixed:1", lr=1e-2)
PROMPTS = Prompts(("a red cube", "a blue cone"), ("a white ring",))


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> partial[Prior]:
    config = tiny_prior_config(tmp_path_factory.mktemp("prior"), ip_adapter=False)
    return partial(load_prior, config)


def test_the_better_half_continues_and_what_diverged_is_last() -> None:
    assert better_half({1e-3: 0.1, 3e-3: 0.4, 1e-2: None, 3e-2: 0.2}) == [3e-3, 3e-2]
    assert better_half({1e-3: -2.0, 3e-3: -1.0}) == [3e-3]
    assert better_half({1e-3: None, 3e-3: None}) == [1e-3]
    assert better_half({1e-3: 0.0}) == [1e-3]


def test_a_change_over_whole_squares_is_left_and_one_inside_them_is_not() -> None:
    coarse = torch.zeros(1, 3, 16, 16)
    coarse[..., :8, :8] = 0.5
    line = torch.arange(16) % 2 * 2.0 - 1.0
    fine = (line[:, None] * line[None]).expand(1, 3, 16, 16)
    share = coarse_share(torch.cat([coarse, fine, torch.zeros_like(coarse)]))
    torch.testing.assert_close(share, torch.tensor([1.0, 0.0, 0.0]))
    # of 1 + fine the squares keep the mean, half of the energy
    torch.testing.assert_close(coarse_share(1.0 + fine), torch.tensor([0.5]))


def test_runs_are_compared_where_they_first_reach_what_all_reach() -> None:
    curves = {"a": [0.1, 0.5, 0.9, 1.0, 1.1], "b": [0.2, 0.3, 0.6, 0.5, 0.4]}
    assert equal_marks(curves) == {"a": 192, "b": 192}
    curves["a"][1] = 0.7
    assert equal_marks(curves) == {"a": 128, "b": 192}
    assert equal_marks({"a": [0.1] * 5, "b": [-0.1] * 5}) is None


def tiny_start(prior: partial[Prior], config: AlignConfig, seed: int) -> Training:
    objectives = build_objectives(config.reward, RewardsConfig(), "", torch.device("cpu"))
    return Training(prior(), config, objectives, PROMPTS, seed=seed)


def test_a_training_continues_from_its_kept_states_bit_for_bit(
    tmp_path: Path, prior: partial[Prior], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignprop_lab, "start", partial(tiny_start, prior))
    whole = alignprop_lab.train_to(CONFIG, 3, 8, tmp_path / "whole")
    states = tmp_path / "parts"
    alignprop_lab.train_to(CONFIG, 3, 4, states)
    steps: list[int] = []
    real = Training.step

    def counted(training: Training) -> object:
        steps.append(training.step_number)
        return real(training)

    monkeypatch.setattr(Training, "step", counted)
    parts = alignprop_lab.train_to(CONFIG, 3, 8, states)
    assert steps == [2, 3]
    for key, value in whole.parameters.items():
        assert torch.equal(value, parts.parameters[key]), key
        assert torch.equal(whole.average[key], parts.average[key]), key
    # a damaged state, or one of another seed, is not continued
    (states / "00000008.safetensors").write_bytes(b"no")
    (states / "00000004.safetensors").unlink()
    steps.clear()
    alignprop_lab.train_to(CONFIG, 3, 8, states)
    assert steps == [0, 1, 2, 3]
    steps.clear()
    alignprop_lab.train_to(CONFIG, 4, 8, states)
    assert steps == [0, 1, 2, 3]


def test_a_training_that_diverges_has_no_total(
    tmp_path: Path, prior: partial[Prior], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(training: Training) -> None:
        raise DivergedError("5 steps in a row were skipped")

    monkeypatch.setattr(alignprop_lab, "start", partial(tiny_start, prior))
    monkeypatch.setattr(Training, "step", diverges)
    assert alignprop_lab.total_at(CONFIG, 0, 4, tmp_path) is None


@pytest.mark.slow
def test_parts_in_processes_are_those_of_one_process(tmp_path: Path) -> None:
    parts = [(f"root-{n}", {"n": n}, partial(pow, n, 0.5)) for n in (1, 4, 9)]
    assert Bench(tmp_path / "one").every(parts) == [1.0, 2.0, 3.0]
    two, lines = tmp_path / "two", []
    assert Bench(two).once(*parts[0]) == 1.0
    assert Bench(two, lines.append, pool=Pool(2)).every(parts) == [1.0, 2.0, 3.0]
    assert len(lines) == 2  # what was there is not measured again


def test_the_arm_with_the_lora_draws_as_lora_for_draw_does(tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    lora.touch()
    overrides = alignprop_assets.arms(lora)[alignprop_assets.ALIGNED]
    found = Settings(tmp_path, "draft", (), overrides).config()
    words = ["generate", "a red cube", "--preset", "draft", "visual_prompt.steps=4"]
    words += ["--lora", str(lora), "--lora-for", "draw"]
    asked = config_of(main.build_parser().parse_args(words))
    asked.visual_prompt.prior.loras = asked.visual_prompt.prior.loras.removesuffix(":1.0")
    assert found.prior == asked.prior and found.visual_prompt == asked.visual_prompt


def test_assets_are_compared_by_prompt_and_a_missing_picture_is_wrong() -> None:
    def record(value: float | None, drawn: float | None) -> dict[str, object]:
        picture = None if drawn is None else {"all": drawn}
        return {"figures": {"all": value, "seconds": 30.0}, "drawn": picture}

    base = [record(0.5, 1.0), record(1.0, 0.0), record(None, None)]
    arm = [record(0.75, 1.0), record(0.5, 1.0), record(1.0, 1.0)]
    assert alignprop_assets.paired(arm, base, alignprop_assets.figure("all")) == [0.25, -0.5]
    assert alignprop_assets.paired(arm, base, alignprop_assets.right) == [0.0, 1.0, 1.0]
    assert alignprop_assets.mean_of(base, alignprop_assets.figure("all")) == 0.75
    assert alignprop_assets.difference([0.5]) == "not measured"


def test_the_page_on_assets_compares_both_arms_and_all_drawings() -> None:
    def records(value: float, drawn: float, seconds: float) -> list[dict[str, object]]:
        figures = dict.fromkeys(alignprop_assets.FIGURES, value)
        return [{"figures": figures | {"seconds": seconds + i}, "drawn": {"all": drawn}}
                for i in range(4)]  # fmt: skip

    names = (alignprop_assets.TODAY, alignprop_assets.PLAIN, alignprop_assets.ALIGNED)
    drawings = zip(names, (1.0, 0.0, 1.0), strict=True)
    found = {("drawings", name): records(0.0, right, 5.0) for name, right in drawings}
    found["assets", names[0]] = records(0.5, 1.0, 30.0)
    found["assets", names[2]] = records(0.5, 1.0, 28.0)
    trained = {"queries": 480, "seconds": 100.0, "stopped": ""}
    verdicts = alignprop_assets.finding(trained, found).verdicts
    assert [verdict.holds for verdict in verdicts] == [True, False, True, True, True]
    assert verdicts[2].measured.startswith("-2.0")


def test_a_lora_is_written_once_and_named_by_its_matrices(tmp_path: Path) -> None:
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    shapes = {f"{key}.lora_A.weight": [[1.0, 2.0]], f"{key}.lora_B.weight": [[0.5], [0.25]]}
    trained = {"lora": shapes, "queries": 8}
    path = alignprop_assets.write_lora(trained, tmp_path)
    written = path.stat().st_mtime_ns
    assert alignprop_assets.write_lora(trained, tmp_path).stat().st_mtime_ns == written
    other = {"lora": {**shapes, f"{key}.lora_A.weight": [[1.0, 3.0]]}, "queries": 8}
    assert alignprop_assets.write_lora(other, tmp_path) != path


def test_the_measuring_clip_finds_the_caption_of_a_true_picture() -> None:
    specs = alignprop_lab.captions()["validation"][:2]
    rgb = torch.cat([toybench.true_views(spec)[:1] for spec in specs])
    names = list(alignprop_lab.prompts_of(specs))
    cosine, nearest = alignprop_lab.match(rgb, names)
    assert nearest.tolist() == [1.0, 1.0]
    swapped, wrong = alignprop_lab.match(rgb, names[::-1])
    assert bool((cosine > swapped).all()) and wrong.tolist() == [0.0, 0.0]


@pytest.mark.slow
def test_claims_are_measured_from_training_to_page(
    tmp_path: Path, prior: partial[Prior], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a tiny model that draws nothing, with few queries: every part runs and can be read."""
    monkeypatch.setattr(alignprop_lab, "load_prior", lambda _: prior())
    few = {use: specs[:4] for use, specs in alignprop_lab.captions().items()}
    for module in (alignprop_lab, alignprop_mix, alignprop_truncation):
        monkeypatch.setattr(module, "captions", lambda: few)
    alignprop_lab.texts.cache_clear()
    plan = {"batch": 4, "rates": (1e-3, 3e-3), "rungs": (4, 8), "marks": (4, 8)}
    monkeypatch.setattr(alignprop_efficiency, "PLANS",
                        dict.fromkeys(("ddpo", "alignprop", "refl"), plan))  # fmt: skip
    monkeypatch.setattr(alignprop_efficiency, "ALONE", (8,))
    monkeypatch.setattr(alignprop_efficiency, "GUARDED", (8,))
    monkeypatch.setattr(alignprop_truncation, "MARKS", (8, 16))
    for module in (alignprop_few_steps, alignprop_mix):
        monkeypatch.setattr(module, "QUERIES", 16)
    found: dict[str, Finding] = {}
    for module in (alignprop_efficiency, alignprop_few_steps, alignprop_mix, alignprop_truncation):
        claim = module.CLAIM
        found[claim.name] = claim.measure(Bench(tmp_path / claim.name))
        again = claim.measure(Bench(tmp_path / claim.name))
        assert again.verdicts == found[claim.name].verdicts
    alignprop_lab.texts.cache_clear()
    assert all(finding.verdicts and finding.tables for finding in found.values())
