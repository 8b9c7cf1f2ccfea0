"""A service without workers for the tests of its contract, and one with a worker for jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.service import RunningService

pytest.importorskip("fastapi", reason="needs the extra `serve`: pip install 'vp3d[serve]'")
pytest.importorskip("uvicorn", reason="needs the extra `serve`: pip install 'vp3d[serve]'")


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
