"""`launch.py evaluate claims NAME`: measure a claim, print its answer, write its page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vp3d.config.paths import program
from vp3d.errors import UserError
from vp3d.evaluate.claims.frame import Bench, Claim, as_text, write_claim
from vp3d.system.console import say

NAMES = (
    "alignprop",
    "alignprop-few-steps",
    "alignprop-truncation",
    "alignprop-mix",
    "alignprop-assets",
    "svdd",
    "svdd-framing",
    "svdd-assets",
    "strings",
)


def find_claim(name: str) -> Claim:
    """The claim of that name; UserError without one."""
    if name == "alignprop":
        from vp3d.evaluate.claims.alignprop_efficiency import CLAIM

        return CLAIM
    if name == "alignprop-few-steps":
        from vp3d.evaluate.claims import alignprop_few_steps

        return alignprop_few_steps.CLAIM
    if name == "alignprop-mix":
        from vp3d.evaluate.claims import alignprop_mix

        return alignprop_mix.CLAIM
    if name == "alignprop-truncation":
        from vp3d.evaluate.claims import alignprop_truncation

        return alignprop_truncation.CLAIM
    if name == "alignprop-assets":
        from vp3d.evaluate.claims import alignprop_assets

        return alignprop_assets.CLAIM
    if name == "svdd":
        from vp3d.evaluate.claims import svdd

        return svdd.CLAIM
    if name == "svdd-framing":
        from vp3d.evaluate.claims import svdd_framing

        return svdd_framing.CLAIM
    if name == "svdd-assets":
        from vp3d.evaluate.claims import svdd_assets

        return svdd_assets.CLAIM
    if name == "strings":
        from vp3d.evaluate.claims import strings

        return strings.CLAIM
    raise UserError(f"there is no claim {name!r}: use one of {', '.join(NAMES)}")


def measure_claim(
    name: str,
    work: Path,
    pages: Path | None = None,
    report: Callable[[str], None] = say,
    jobs: int = 1,
) -> str:
    """Measure a claim, or what is missing of it, and write its page.

    Args:
        name: One of `NAMES`.
        work: Keeps the result of each part; the same call continues after an interruption.
        pages: Folder of the page and its plot; None writes them into `work`.
        report: Hears of progress.
        jobs: Processes.

    Returns:
        The answer as text.
    """
    claim = find_claim(name)
    bench = Bench(work, report, jobs)
    finding = claim.measure(bench)
    command = f"{program()} evaluate claims {name}" + (f" --jobs {jobs}" if jobs > 1 else "")
    page = write_claim(claim, finding, pages or work, command, bench.seconds)
    return f"{as_text(finding)}{page}\n"
