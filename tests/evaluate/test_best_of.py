"""The claim on best-of-N: figures by hand, and that every seed is made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vp3d.errors import UserError
from vp3d.evaluate.claims import best_of
from vp3d.evaluate.claims.best_of import by_judge, by_reward, expected, seconds_of
from vp3d.evaluate.claims.frame import Bench
from vp3d.evaluate.runner import Settings, Task


def seeds(*pairs: tuple[float, float | None], prompt: str = "a red cube") -> list[dict[str, Any]]:
    """Records of one prompt from attributes right and score; without a score it failed."""
    return [
        {
            "set": "single", "prompt": prompt, "seed": number, "failure": "",
            "figures": {"all": right, "objects": right, "colors": right, "r_precision": 0.5,
                        "iou": 0.5, "seconds": 10.0 + number}
            | ({} if score is None else {"score": score}),
        }
        for number, (right, score) in enumerate(pairs)
    ]  # fmt: skip


MIXED = seeds((0.2, 0.1), (0.8, 0.4), (1.0, 0.3), (0.0, None))


def test_smaller_numbers_are_the_mean_over_all_choices_among_the_seeds() -> None:
    assert expected(MIXED, 1, by_reward, "all") == pytest.approx(0.5)
    # pairs: (0.8, 1.0, 0.2, 0.8, 0.8, 1.0), as the failed seed has no score
    assert expected(MIXED, 2, by_reward, "all") == pytest.approx(4.6 / 6.0)
    assert expected(MIXED, 4, by_reward, "all") == pytest.approx(0.8)
    assert expected(MIXED, 4, by_judge, "all") == pytest.approx(1.0)
    assert expected(MIXED, 4, by_reward, "relation") is None
    assert seconds_of(MIXED, 2) == pytest.approx(23.0)


def test_pairs_that_the_judge_finds_equal_say_nothing_of_the_reward() -> None:
    assert best_of.agreement([MIXED]) == (2, 3)
    assert best_of.agreement([seeds((0.5, 0.1), (0.5, 0.2))]) == (0, 0)


def test_a_gain_of_every_prompt_holds_and_none_does_not() -> None:
    # the reward prefers the best; from prompt to prompt the gain is not the same
    good = [seeds((0.0, 0.0), (0.1, 0.1), (0.2, 0.2), (0.6 + n / 20, 0.9)) for n in range(6)]
    found = best_of.finding([record for prompt in good for record in prompt])
    assert [verdict.holds for verdict in found.verdicts] == [True, True, None, None]
    assert found.verdicts[3].measured == "36 of 36"
    counts = found.tables[0].rows
    assert [row[0] for row in counts] == [1, 2, 4]
    assert [row[4] for row in counts] == pytest.approx([11.5, 23.0, 46.0])
    bad = [seeds((1.0, 0.0), (0.9, 0.1), (0.8, 0.2), (0.7 - n / 20, 0.9)) for n in range(6)]
    found = best_of.finding([record for prompt in bad for record in prompt])
    assert [verdict.holds for verdict in found.verdicts] == [False, False, None, None]


def test_every_fifth_prompt_has_its_own_seed_and_the_next_ones() -> None:
    tasks = best_of.chosen_tasks()
    assert len(tasks) == 60 and len({task.key for task in tasks}) == 60
    prompts = [tasks[first : first + 4] for first in range(0, 60, 4)]
    for group in prompts:
        assert len({task.prompt for task in group}) == 1
        assert [task.seed for task in group] == list(range(group[0].seed, group[0].seed + 4))
    groups = [group[0].group for group in prompts]
    assert [groups.count(name) for name in ("single", "parts", "relation")] == [5, 5, 5]


def test_what_is_judged_is_not_made_again_and_the_page_has_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def judge(settings: Settings, task: Task) -> dict[str, Any]:
        made.append(task.key)
        if len(made) == 3:
            raise UserError("stopped")
        (record,) = seeds((0.5 + task.seed % 4 / 10.0, task.seed % 4 / 10.0), prompt=task.prompt)
        return record | {"set": task.group, "seed": task.seed, "reason": "", "source": ""}

    monkeypatch.setattr(best_of, "judge_candidate", judge)
    monkeypatch.setattr(best_of, "chosen_tasks", lambda: ALL[:8])
    monkeypatch.setattr("vp3d.evaluate.runner._check_models", lambda settings: None)
    monkeypatch.chdir(tmp_path)
    work = tmp_path / "work"
    with pytest.raises(UserError, match="stopped"):
        best_of.measure(Bench(work))
    best_of.measure(Bench(work))
    assert not Path("outputs").exists(), "the check of a request writes to the folder of results"
    assert len(made) == 9 and len(set(made)) == 8  # the one that was stopped, twice
    assert best_of.CLAIM.page == "batch"


ALL = best_of.chosen_tasks()
