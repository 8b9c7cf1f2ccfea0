"""A service without workers for the tests of its contract, and one with a worker for jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.service import RunningService

NEEDED = ("fastapi", "uvicorn", "python_multipart")


def need_serve() -> None:
    """Skip the test where the packages of the service are missing."""
    for name in NEEDED:
        pytest.importorskip(name, reason="needs the extra `serve`: pip install 'vp3d[serve]'")


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with a token and without workers: jobs stay queued."""
    need_serve()
    data = tmp_path_factory.mktemp("service") / "data"
    with RunningService(data, token="a token of the tests") as running:
        yield running


@pytest.fixture(scope="session")
def working(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with one worker."""
    need_serve()
    with RunningService(tmp_path_factory.mktemp("working") / "data", workers=1) as running:
        yield running
