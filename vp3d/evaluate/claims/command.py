"""`launch.py evaluate claims NAME`: measure a claim, print its answer, write its page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vp3d.config.paths import program
from vp3d.engine.pool import ALONE, Pool
from vp3d.errors import UserError
from vp3d.evaluate.claims import (
    alignprop_assets,
    alignprop_efficiency,
    alignprop_few_steps,
    alignprop_mix,
    alignprop_truncation,
    best_of,
    hallucination,
    molecules,
    strings,
    strings_value,
    svdd,
    svdd_assets,
    svdd_framing,
    teacher,
    upscale,
)
from vp3d.evaluate.claims.frame import Bench, Claim, as_text, write_claim
from vp3d.system.console import say

CLAIMS = {
    module.CLAIM.name: module.CLAIM
    for module in (
        alignprop_efficiency,
        alignprop_few_steps,
        alignprop_truncation,
        alignprop_mix,
        alignprop_assets,
        svdd,
        svdd_framing,
        svdd_assets,
        strings,
        best_of,
        strings_value,
        molecules,
        hallucination,
        upscale,
        teacher,
    )
}


def find_claim(name: str) -> Claim:
    """The claim of that name; UserError without one."""
    if name not in CLAIMS:
        raise UserError(f"there is no claim {name!r}: use one of {', '.join(CLAIMS)}")
    return CLAIMS[name]


def measure_claim(
    name: str,
    work: Path,
    pages: Path | None = None,
    report: Callable[[str], None] = say,
    pool: Pool = ALONE,
) -> str:
    """Measure a claim, or what is missing of it, and write its page.

    Args:
        name: A key of `CLAIMS`.
        work: Keeps the result of each part; the same call continues after an interruption.
        pages: Folder of the page and its plot; None writes them into `work`.
        report: Hears of progress.
        pool: What measures independent parts.

    Returns:
        The answer as text.
    """
    claim = find_claim(name)
    pool.check(0.0)
    bench = Bench(work, report, pool)
    finding = claim.measure(bench)
    command = f"{program()} evaluate claims {name}" + (
        f" --jobs {pool.workers}" if pool.workers > 1 else ""
    )
    page = write_claim(claim, finding, pages or work, command, bench.facts())
    return f"{as_text(finding)}{page}\n"
