"""What the annotation of one field cannot say: rules between fields, settings without effect."""

from __future__ import annotations

from operator import attrgetter

from vp3d.config.schema import Config, GuidanceConfig, Schedule
from vp3d.errors import UserError

FEWEST_FACES = 4  # triangles of the smallest closed surface
IN_ORDER = (  # pairs of which the first may not be above the second
    ("camera.elevation_min_deg", "camera.elevation_max_deg"),
    ("render.background_min", "render.background_max"),
    ("guidance.lam_gate.full_deg", "guidance.lam_gate.zero_deg"),
    ("rewards.text_image.begin", "rewards.text_image.finish"),
    ("rewards.text_image.gate.full_deg", "rewards.text_image.gate.zero_deg"),
    ("rewards.image_image.begin", "rewards.image_image.finish"),
    ("rewards.image_image.gate.full_deg", "rewards.image_image.gate.zero_deg"),
    ("rewards.aesthetic.begin", "rewards.aesthetic.finish"),
    ("rewards.aesthetic.gate.full_deg", "rewards.aesthetic.gate.zero_deg"),
)
SCALES = {  # guidance.mode -> the scales that it reads
    "joint": ("guidance_scale",),
    "split": ("text_scale", "image_scale"),
}


def check_rules(config: Config) -> None:
    """Refuse settings that contradict each other; UserError names the keys and the values."""
    for low, high in IN_ORDER:
        lower, higher = attrgetter(low)(config), attrgetter(high)(config)
        if lower > higher:
            raise UserError(f"config key '{low}' ({lower}) is above '{high}' ({higher})")
    faces = config.export.faces
    if 0 < faces < FEWEST_FACES:
        raise UserError(
            f"config key 'export.faces': {faces} triangles cannot close a surface; "
            f"take {FEWEST_FACES} or more, or 0"
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
