"""`generate --candidates N`: N seeds of one prompt, all kept, and the one that scores highest.

It is a batch of one asset, so the folder has the page, `batch.jsonl` and the runs of a batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from vp3d.batch.assets import assets_of
from vp3d.batch.command import BatchOptions, make_assets
from vp3d.batch.publish import PAGE
from vp3d.checks import check_request
from vp3d.config.paths import expand
from vp3d.config.schema import Config
from vp3d.errors import UserError
from vp3d.evaluate.prompt_file import SuitePrompt
from vp3d.evaluate.runner import Settings
from vp3d.runs.folder import save_config, slug
from vp3d.system.files import plain

CONFIG = "candidates.yaml"  # in the folder: the settings of all candidates


def make_candidates(config: Config, count: int) -> Path:
    """Make the seeds `config.seed`, `config.seed` + 1, ... that are not finished.

    The same request continues where it was interrupted, and a larger `count` adds candidates to
    those that exist.

    Args:
        config: the request.
        count: how many candidates.

    Returns:
        The run folder of the candidate with the highest text reward; `candidates_folder(config)`
        has the page of all.

    Raises:
        UserError: the request cannot work, or every candidate failed.
        ResourceError: memory or disk space ran out.
    """
    check_request(config, new=True)
    folder = candidates_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / CONFIG)
    settings = Settings(folder, config.preset, (folder / CONFIG,))
    (asset,) = assets_of([SuitePrompt(config.prompt, config.seed)], 1, count)
    (line,) = make_assets([asset], settings, BatchOptions(best_of=count))
    if line["failure"]:
        raise UserError(
            f"all {count} candidates failed, the first because {line['reason']}; {folder / PAGE} "
            "has the reason of each"
        )
    return folder / line["run"]


def candidates_folder(config: Config) -> Path:
    """The folder of a request's candidates; another one for every other setting."""
    text = json.dumps(plain(dataclasses.replace(config, output_dir="")), sort_keys=True)
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = f"candidates-{slug(config.prompt)}-s{config.seed}-{mark}"
    return expand(config.output_dir).absolute() / name
