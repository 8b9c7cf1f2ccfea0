"""The ablation's arithmetic by hand, and that every arm is a configuration of its own."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.assets import asset_of
from vp3d.config.loader import get_value, load_config
from vp3d.config.paths import ROOT
from vp3d.errors import ResourceError, UserError
from vp3d.evaluate import ablation
from vp3d.evaluate.ablation import (
    ARMS,
    SWEEP,
    TILE,
    TUNE,
    compare,
    difference,
    main,
    markdown,
    matching,
    write_grid,
)
from vp3d.evaluate.prompt_file import read_suite
from vp3d.evaluate.toybench import suite_tasks, tuning_tasks
from vp3d.export.glb import write_glb
from vp3d.report.pictures import GAP
from vp3d.worlds.toybox.scenes import parse_caption
from vp3d.worlds.toybox.truth import lit, true_mesh


def records(*values: tuple[str, float | None], failure: str = "", of: str = "single") -> list[dict]:
    return [
        {"set": of, "prompt": prompt, "figures": {"all": value}, "failure": failure}
        for prompt, value in values
    ]


def test_the_first_arm_is_plain_sds_as_the_config_file_has_it() -> None:
    assert load_config("draft", [ROOT / "configs" / "sds.yaml"], []) == load_config(
        "draft", [], list(ARMS["SDS"])
    )


def test_differences_pair_prompts_and_average_seeds_first() -> None:
    base = records(("a", 0.2), ("a", 0.4), ("b", 0.5), ("c", None))
    arm = records(("a", 0.5), ("a", 0.9), ("b", 0.5), ("c", 1.0))
    found = difference(arm, base, "all")
    assert (
        found is not None
        and found["mean"] == pytest.approx((0.4 + 0.0) / 2)
        and found["count"] == 2
    )
    assert (found["low"], found["high"], found["p"]) == (-1.0, 1.0, 1.0), "two prompts say little"
    assert difference(arm, base, "iou") is None


def test_the_page_tells_every_arm_and_its_failures() -> None:
    comparison = compare(
        {
            "SDS": records(("a", 0.25), ("b", 0.25)),
            "VP3D": records(("a", 0.75), ("b", 0.75), failure="empty"),
        }
    )
    page = markdown(comparison, "Ablation", {"preset": "draft"}, 2)
    assert "| SDS | 25 % [25, 25] 25 | 0 |" in page and "| VP3D | 75 % [75, 75] 75 | 2 |" in page
    assert "| VP3D | +50 points [+50, +50] | 2 |" in page and "IoU" not in page


def test_the_page_tells_the_difference_by_prompt_set() -> None:
    base = [*records(("a", 0.25), ("b", 0.5)), *records(("c", 1.0), of="relation")]
    arm = [*records(("a", 0.5), ("b", 1.0)), *records(("c", 0.75), of="relation")]
    page = markdown(compare({"SDS": base, "VP3D": arm}), "Ablation", {}, 3)
    assert "| arm | single | relation |" in page
    assert "| VP3D | +38 points [-100, +100] | -25 points [–] |" in page


def many(value: float, count: int = 12, commit: str = "a" * 40, date: str = "2026-01-01") -> list:
    """An arm with one figure, its prompts spread around it."""
    made = {"git": {"commit": commit, "dirty": False}, "date": date, "machine": "Linux, 2 cores"}
    found = records(*((f"prompt {n}", value + 0.01 * n) for n in range(count)))
    return [record | made for record in found]


def test_a_star_is_more_than_chance_after_the_correction_for_the_arms() -> None:
    """12 prompts in one direction: p = 2 / 2^12, times the number of arms."""
    arms = {"SDS": many(0.2), "better": many(0.3), "worse": many(0.1)}
    noise = many(0.2)
    for n, record in enumerate(noise):
        record["figures"]["all"] += 0.1 * (-1) ** n
    comparison = compare(arms | {"as good": noise})
    found = {arm: row["against_first"]["all"] for arm, row in comparison.items()}
    least = 2 / 2**12
    assert found["better"]["p"] == found["worse"]["p"] == least
    assert found["better"]["p_holm"] == pytest.approx(3 * least)
    assert found["as good"]["p_holm"] > 0.5 and "p_holm" not in found["SDS"]
    page = markdown(comparison, "Ablation", {}, 12)
    assert "| better | +10 points [+10, +10]* |" in page
    assert "| worse | -10 points [-10, -10]* |" in page
    rows = [line for line in page.splitlines() if line.startswith("| as good | +0 points")]
    assert len(rows) == 2 and not any("*" in row for row in rows)
    assert "each figure corrected for 3 arms (Holm)." in page


def test_many_arms_on_few_prompts_cannot_have_a_star_and_the_page_says_so() -> None:
    arms = {"default": many(0.2, 6)} | {f"arm {n}": many(0.5, 6) for n in range(23)}
    page = markdown(compare(arms), "Sweep", {}, 6)
    assert "corrected for 23 arms (Holm); with so few prompts p cannot be below 0.72" in page
    assert "]*" not in page and "+30 points [+30, +30]" in page


def test_the_page_names_the_makers_of_its_records_and_not_its_printer() -> None:
    options = argparse.Namespace(preset="draft", seeds=1, match=[])
    same = {"SDS": many(0.2), "VP3D": many(0.3)}
    facts = ablation.facts_of(options, same, 2)
    assert facts["commit"] == "a" * 10 and facts["date"] == "2026-01-01"
    assert facts["machine"] == "Linux, 2 cores" and "by arm" not in facts
    mixed = {"SDS": many(0.2, commit="b" * 40, date="2025-12-30"), "VP3D": many(0.3)}
    facts = ablation.facts_of(options, mixed, 3)
    assert facts["commit"] == f"{'b' * 10}, {'a' * 10} (2 versions in one table)"
    assert facts["date"] == "2025-12-30 to 2026-01-01"
    assert facts["by arm"] == f"SDS: {'b' * 10}; VP3D: {'a' * 10}"
    assert facts["arms"] == "2 of 3 (SDS; VP3D)"
    old = {"SDS": records(("a", 0.5))}
    facts = ablation.facts_of(options, old, 1)
    assert (facts["commit"], facts["date"], facts["machine"]) == ("none", *["not recorded"] * 2)


@pytest.mark.parametrize("arms", [ARMS, SWEEP, TUNE])
def test_arms_are_valid_and_differ(arms: dict[str, tuple[str, ...]]) -> None:
    configs = [load_config("draft", [], list(overrides)) for overrides in arms.values()]
    assert all(a != b for i, a in enumerate(configs) for b in configs[:i])


def test_every_setting_of_sds_is_tried_and_none_has_image_or_rewards() -> None:
    tried = set()
    for overrides in TUNE.values():
        config = load_config("draft", [], list(overrides))
        guidance = config.guidance
        tried.add(
            (
                guidance.guidance_scale,
                guidance.denoise_steps,
                guidance.space,
                guidance.t_min.at(0.5) < 0.1,
            )
        )
        assert guidance.lam.at(0.0) == guidance.lam.at(1.0) == 0.0 and guidance.estimate_every == 1
        assert config.rewards.text_image.weight == config.rewards.image_image.weight == 0.0
    spaces, noise = ("latents", "pixels"), (True, False)
    assert tried == set(itertools.product((2.0, 4.0, 7.0, 10.0), (1, 2), spaces, noise))


def test_no_prompt_of_a_table_is_tuned_on() -> None:
    prompts = {task.prompt for task in tuning_tasks(1)}
    gallery = {entry.prompt for entry in read_suite(ROOT / "assets" / "prompts" / "gallery.txt")}
    reported = {task.prompt for task in suite_tasks("all", 1)} | gallery
    assert len(prompts) == 6 and not prompts & reported
    assert {task.group for task in tuning_tasks(1)} == {"single", "parts", "relation"}


def test_plain_sds_has_neither_image_nor_rewards() -> None:
    config = load_config("draft", [], list(ARMS["SDS"]))
    assert get_value(config, "guidance.lam").at(0.5) == 0.0
    assert config.rewards.text_image.weight == config.rewards.image_image.weight == 0.0
    assert ARMS["VP3D"] == () and len(suite_tasks("mini", 1)) == 18


def test_some_arms_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []

    def run_arm(name: str, overrides: Sequence[str], *_: object) -> list[dict]:
        made.append(name)
        faces = {"all": 0.5, "two_faced": 1.0}
        return [
            {"set": "single", "prompt": "a", "figures": faces, "failure": ""},
            *records(("b", 0.5), ("c", 0.5)),
        ]

    monkeypatch.setattr(ablation, "run_arm", run_arm)
    main(["--work", str(tmp_path), "--arms", "VP3D", "VP-SDS"])
    page = capsys.readouterr().out
    assert (
        made == ["VP3D", "VP-SDS"]
        and "arms 2 of 8 (VP3D; VP-SDS)" in page
        and "Difference from VP3D" in page
    )
    assert "(1 of 3)" in page and "Janus rate: (over how many of the assets)" in page
    main(["--work", str(tmp_path), "--sweep", "--arms", "4 steps"])
    assert made[2:] == ["4 steps"] and "arms 1 of" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"no arm 'VP4D'; there are: SDS; SDS, twice the CFG; .*; VP3D"
    ):
        main(["--work", str(tmp_path), "--arms", "VP4D"])
    assert len(made) == 3


def test_prompts_are_chosen_by_what_they_hold() -> None:
    tasks = suite_tasks("mini", 1)
    found = [task.prompt for task in matching(tasks, ["white house", "blue checks"])]
    assert found == ["a yellow cylinder with blue checks", "a red car next to a white house"]
    assert matching(tasks, []) == tasks
    with pytest.raises(UserError, match="no prompt contains 'dragon' or 'elf'; give --match"):
        matching(tasks, ["dragon", "elf"])


def test_the_grid_shows_the_true_object_beside_each_arms_mesh(tmp_path: Path) -> None:
    path = tmp_path / "a-red-cone.glb"
    write_glb(asset_of(lit(true_mesh(parse_caption("a red cone"), 48))), path)
    record = {
        "set": "single",
        "prompt": "a red cone",
        "seed": 0,
        "failure": "",
        "source": str(path),
    }
    failed = record | {"failure": "empty", "source": ""}
    write_grid({"SDS": [record], "failed": [failed], "VP3D": [record]}, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        page = np.array(picture.convert("RGB")).astype(float)
    red = (page[..., 0] > 120) & (page[..., 1] < 90)
    shares = [red[:, 2 * GAP + i * (2 * TILE + GAP) :][:, : 2 * TILE].mean() for i in range(3)]
    assert shares[0] > 0.05 and shares[1:] == pytest.approx([shares[0]] * 2, rel=0.1)


def test_places_that_cannot_be_written_are_told_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for option in ("--write", "--grid"):
        with pytest.raises(ResourceError, match="file"):
            main(["--work", str(tmp_path / "work"), option, str(tmp_path / "file" / "page")])
    assert not (tmp_path / "work").exists()
