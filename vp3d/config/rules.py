"""What the annotation of one field cannot say: rules between fields, settings without effect."""

from __future__ import annotations

from operator import attrgetter

from vp3d.config.reader import keys
from vp3d.config.schema import (
    CameraConfig,
    Config,
    GuidanceConfig,
    RenderConfig,
    RewardConfig,
    Schedule,
    SvddConfig,
    ViewGate,
)
from vp3d.errors import UserError

FEWEST_FACES = 4  # triangles of the smallest closed surface
IN_ORDER = {  # group -> two of its fields, of which the first may not be above the second
    CameraConfig: ("elevation_min_deg", "elevation_max_deg"),
    RenderConfig: ("background_min", "background_max"),
    RewardConfig: ("begin", "finish"),
    SvddConfig: ("begin", "finish"),
    ViewGate: ("full_deg", "zero_deg"),
}
SCALES = {  # guidance.mode -> the scales that it reads
    "joint": ("guidance_scale",),
    "split": ("text_scale", "image_scale"),
}


def check_rules(config: Config) -> None:
    """Refuse settings that contradict each other; UserError names the keys and the values."""
    for key in keys(config):
        group = attrgetter(key)(config)
        if type(group) in IN_ORDER:
            low, high = IN_ORDER[type(group)]
            lower, higher = getattr(group, low), getattr(group, high)
            if lower > higher:
                found = f"'{key}.{low}' ({lower}) is above '{key}.{high}' ({higher})"
                raise UserError(f"config key {found}")
    faces = config.export.faces
    if 0 < faces < FEWEST_FACES:
        raise UserError(
            f"config key 'export.faces': {faces} triangles cannot close a surface; "
            f"take {FEWEST_FACES} or more, or 0"
        )
    drawing = config.visual_prompt
    if drawing.sampler == "svdd" and drawing.steps < 2:
        raise UserError(
            "config key 'visual_prompt.steps' is 1, in which svdd has nothing to choose: take 2 or "
            "more, or visual_prompt.sampler=ddim"
        )
    svdd = drawing.svdd
    if drawing.sampler == "svdd" and svdd.begin == svdd.finish:
        raise UserError(
            f"config keys 'visual_prompt.svdd.begin' and '.finish' are both {svdd.begin:g}, so no "
            "step would be steered: take a larger finish, or visual_prompt.sampler=ddim"
        )
    refine = config.refine
    if refine.method == "sds" and min(refine.strengths) < refine.t_min:
        raise UserError(
            f"config key 'refine.strengths': {min(refine.strengths):g} is below 'refine.t_min' "
            f"({refine.t_min:g}), the lowest noise level of refine.method=sds"
        )
    check_noise_levels(config.guidance.t_min, config.guidance.t_max)


def check_noise_levels(low: Schedule, high: Schedule) -> None:
    """Refuse noise levels that cross at any progress.

    Both schedules are linear between the points that are tested.
    """
    corners = [0.0, 1.0, low.from_, low.to, high.from_, high.to]
    for progress in sorted({*corners, *(min(corner + 1.0e-9, 1.0) for corner in corners)}):
        lower, higher = low.at(progress), high.at(progress)
        if lower > higher + 1.0e-6:
            raise UserError(
                "config key 'guidance.t_min' is above 'guidance.t_max': "
                f"{lower:g} is above {higher:g} at progress {progress:.2g}"
            )


def unread_settings(config: Config) -> list[str]:
    """A line for each scale of the guidance that was changed but is not read in its mode."""
    guidance, default = config.guidance, GuidanceConfig()
    return [
        f"guidance.{name} changes nothing here: only guidance.mode={mode} reads it"
        for mode, names in SCALES.items()
        if mode != guidance.mode
        for name in names
        if getattr(guidance, name) != getattr(default, name)
    ]
