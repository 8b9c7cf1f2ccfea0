"""Run the service: uvicorn in this process, the workers as its children."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn

from vp3d.errors import UserError
from vp3d.jobs.executors import WorkerPool, count_devices, worker_environment
from vp3d.jobs.locks import try_lock
from vp3d.jobs.store import Store
from vp3d.serve.app import create_app
from vp3d.serve.settings import ServiceSettings, is_loopback

WORKER_NICE = 2  # the service answers while its workers use every core


def serve(
    settings: ServiceSettings, workers: int | None, show: Callable[[str], None], tell_token: bool
) -> int:
    """Serve until SIGTERM or Ctrl-C; running jobs are left at a checkpoint.

    Args:
        settings: what the owner decided.
        workers: how many workers; None for one a GPU, or one on a CPU.
        show: prints one line.
        tell_token: print a link with the token.

    Returns:
        The exit code.

    Raises:
        UserError: another service uses the data folder, or the port.
    """
    store = Store(settings.data)
    own = try_lock(settings.data / ".service.lock")
    if own is None:
        raise UserError(f"another service uses {settings.data}; stop it, or choose another --data")
    devices = count_devices()
    count = workers if workers is not None else max(devices, 1)
    pool = WorkerPool(
        store, count, lambda index: worker_environment(index, count, devices), WORKER_NICE
    )
    app = create_app(settings, store, pool)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
        limit_concurrency=256,
        h11_max_incomplete_event_size=32 << 10,
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    server = Server(config, app)
    shown = f"http://{'[' + settings.host + ']' if ':' in settings.host else settings.host}"
    link = f"{shown}:{settings.port}/"

    async def run() -> None:
        sockets = [config.bind_socket()]
        serving = asyncio.create_task(server.serve(sockets))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        pool.start()
        secret = f"#token={settings.token}" if tell_token else ""
        show(f"serving {settings.data} at {link}{secret}")
        await serving

    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(run())
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if pool.thread.is_alive():
            pool.stop()
        own.release()
    return 0


class Server(uvicorn.Server):
    """uvicorn's server; a signal to end also ends the streams of events."""

    def __init__(self, config: uvicorn.Config, app: Any) -> None:
        super().__init__(config)
        self.app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let the streams drain, then stop."""
        self.app.state.service.streams.draining = True
        super().handle_exit(sig, frame)


def check_address(host: str, token: str) -> None:
    """Refuse an address that others can reach while nobody has to present a token."""
    if not is_loopback(host) and not token:
        raise UserError(
            f"--host {host} can be reached by others, so a token is needed: give --token-file FILE "
            "or set VP3D_TOKEN"
        )
