"""Take another candidate of a run's visual prompt than the one that was chosen by its reward."""

from __future__ import annotations

import torch

from vp3d.config.schema import VisualPromptConfig
from vp3d.errors import UserError
from vp3d.runs.folder import RunFolder
from vp3d.system.files import read_json_object, write_json
from vp3d.visual_prompt.cutout import border_flood, is_usable, over_grey
from vp3d.visual_prompt.make import (
    SCORES_FILE,
    VisualPrompt,
    candidate_labels,
    load_visual_prompt,
    write_pictures,
)


def choose_candidate(run_folder: RunFolder, settings: VisualPromptConfig, chosen: int) -> None:
    """Make candidate `chosen` the visual prompt of a run that has not been optimised yet.

    `scores.json` is written last, so a call that was interrupted is repeated. The candidate that
    the reward chose stays as it is.

    Args:
        run_folder: The run, with its candidates.
        settings: How pictures are cut out.
        chosen: Index of the candidate.

    Raises:
        UserError: There is no such candidate, it cannot be cut out, or a file is damaged.
    """
    found = load_visual_prompt(run_folder)
    if not 0 <= chosen < len(found.scores):
        raise UserError(
            f"there is no candidate {chosen}; choose one of 0 to {len(found.scores) - 1}"
        )
    if chosen == found.chosen:
        return
    # Masks are 8-bit in files; those of the candidates are found again from their pictures.
    masks = torch.stack([border_flood(rgb, settings.cutout_tolerance) for rgb in found.candidates])
    masks = (masks.clamp(0.0, 1.0) * 255.0).round() / 255.0
    if not is_usable(masks[chosen]):
        raise UserError(f"candidate {chosen} cannot be cut out; choose another")
    cutouts = (over_grey(found.candidates, masks, settings.ground) * 255.0).round() / 255.0
    notes = read_json_object(run_folder.visual_prompt / SCORES_FILE)
    new = VisualPrompt(
        cutouts[chosen : chosen + 1],
        masks[chosen : chosen + 1],
        found.candidates,
        found.scores,
        chosen,
    )
    write_pictures(new, cutouts, candidate_labels(found.scores, notes["ragged"]), run_folder)
    notes = {"chosen_by_reward": found.chosen, **notes, "chosen": chosen}
    write_json(run_folder.visual_prompt / SCORES_FILE, notes)
    run_folder.event("visual_prompt", source="chosen by the user", chosen=chosen)
