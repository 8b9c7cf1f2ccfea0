"""A service without workers for the tests of its contract, and one with a worker for jobs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from tests.helpers.service import RunningService

if not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn", "multipart")):
    collect_ignore_glob = ["test_*.py"]  # they need the extra `serve`


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with a token and without workers: jobs stay queued."""
    data = tmp_path_factory.mktemp("service") / "data"
    with RunningService(data, token="a token of the tests") as running:
        yield running


@pytest.fixture(scope="session")
def working(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with one worker."""
    with RunningService(tmp_path_factory.mktemp("working") / "data", workers=1) as running:
        yield running
