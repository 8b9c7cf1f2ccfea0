"""Refuse paths that name no file: addresses, and an output folder that is empty."""

from __future__ import annotations

import re
from operator import attrgetter

from vp3d.config.reader import keys
from vp3d.config.schema import Config
from vp3d.errors import UserError

# https://..., s3://..., and data:...; a path object writes two slashes as one.
ADDRESS = re.compile(r"(?:^|/)(?:[A-Za-z][A-Za-z0-9+.-]+:/+|data:)", re.IGNORECASE)
WEB = re.compile(r"www\.[\w-]+\.\w+(?:/|$)", re.IGNORECASE)
HUB = re.compile(r"https?://(?:www\.)?huggingface\.co/([\w.-]+/[\w.-]+)/?.*", re.IGNORECASE)
TEXTS = (  # settings that are words and not paths
    "prompt",
    "negative_prompt",
    "visual_prompt.view",
    "visual_prompt.words",
    "guidance.debias_words",
)


def is_address(text: str) -> bool:
    """Whether a text is an address, such as a URL, and no path of this machine.

    Example:
        >>> is_address("https://example.org/mug.png"), is_address("pictures/mug.png")
        (True, False)
    """
    return bool(ADDRESS.search(text) or WEB.match(text))


def check_address(text: str, name: str) -> None:
    """Refuse an address where a file or folder is expected.

    Args:
        text: what the user gave.
        name: the option or key, for the message.

    Raises:
        UserError: says that addresses are not read, and what to do.
    """
    if not is_address(text):
        return
    shown = text if len(text) <= 100 else f"{text[:100]}..."
    raise UserError(
        f"{name}: {shown} is an address, and addresses are not read; download the file and give "
        "its path"
    )


def check_places(config: Config) -> None:
    """Refuse an empty output folder, and addresses in every setting that is a path or a model.

    Raises:
        UserError: names the key, and the hub id of an address on huggingface.co.
    """
    if not config.output_dir.strip():
        raise UserError(
            "config key 'output_dir' is empty; give a folder, for example output_dir=outputs, or "
            "leave it out"
        )
    for key in keys(config):
        value = attrgetter(key)(config)
        if not isinstance(value, str) or key in TEXTS or not value:
            continue
        hub = HUB.fullmatch(value)
        if hub:
            raise UserError(
                f"config key '{key}': {value} is an address, and addresses are not read; give the "
                f"hub id: {key}={hub[1]}"
            )
        check_address(value, "--image" if key == "image" else f"config key '{key}'")
