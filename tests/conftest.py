"""Shared by every test: no network, no window, and GPU tests only where there is a GPU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vp3d.types import Asset

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Asset:
    """A whole tiny run, made once for every test that reads one.

    Whoever changes files works on a copy of its folder.
    """
    import torch

    from tests.helpers.tiny_run import tiny_config
    from vp3d import pipeline

    torch.set_num_threads(1)
    return pipeline.generate(tiny_config(tmp_path_factory.mktemp("finished")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
