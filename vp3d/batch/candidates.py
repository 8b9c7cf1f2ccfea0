"""`generate --candidates N`: N seeds of one prompt, all kept, and the one that scores highest.

It is a batch of one asset, so the folder has the page, `batch.jsonl` and the runs of a batch.
"""

from __future__ import annotations

from pathlib import Path

from vp3d.batch.assets import assets_of
from vp3d.batch.command import make_assets
from vp3d.batch.publish import PAGE
from vp3d.errors import UserError
from vp3d.evaluate.prompt_file import SuitePrompt
from vp3d.evaluate.runner import Settings


def make_candidates(prompt: str, seed: int, count: int, settings: Settings) -> Path:
    """Make the candidates that are not finished.

    The same request continues where it was interrupted, and a larger `count` adds candidates to
    those that exist.

    Args:
        prompt: the prompt.
        seed: the seed of the first candidate; the others have the next ones.
        count: how many candidates.
        settings: how they are made; the folder gets the page of all.

    Returns:
        The run folder of the candidate with the highest text reward.

    Raises:
        UserError: every candidate failed, or what `make_assets` refuses.
        ResourceError: memory or disk space ran out.
    """
    (asset,) = assets_of([SuitePrompt(prompt, seed)], 1, count)
    (line,) = make_assets([asset], settings)
    if line["failure"]:
        raise UserError(
            f"all {count} candidates failed, the first because {line['reason']}; "
            f"{settings.folder / PAGE} has the reason of each"
        )
    return settings.folder / line["run"]
