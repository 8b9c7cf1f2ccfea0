"""`serve`: the REST service and the web page."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from vp3d.cli.arguments import Subparsers
from vp3d.config.paths import program
from vp3d.errors import UserError

EPILOG = f"""\
The service listens on this machine only, unless --host says otherwise; then a token is needed.
Jobs, their files and the token are in the data folder, and survive a kill of the service, of a
worker or of the machine. docs/how_to/serve.md has examples with curl and Python.

examples:
  {program()} serve
  {program()} serve --data /data/vp3d --port 9000 --workers 2
  {program()} serve --host 0.0.0.0 --token-file token.txt --name vp3d.example.org
"""
NEEDED = ("fastapi", "uvicorn", "multipart")


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of `serve`."""
    parser = subparsers.add_parser(
        "serve",
        help="start the web page and the REST service",
        description="Start the web page and the REST service.",
        epilog=EPILOG,
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8765, help="the port to listen on (8765)")
    parser.add_argument(
        "--data", metavar="DIR", default="outputs", help="folder of jobs and runs (outputs)"
    )
    parser.add_argument(
        "--workers", default="auto", metavar="N", help="worker processes: one a GPU, or one (auto)"
    )
    parser.add_argument("--token-file", metavar="FILE", help="a file with the token of clients")
    parser.add_argument(
        "--no-token", action="store_true", help="ask for no token; only on a loopback address"
    )
    parser.add_argument(
        "--name",
        metavar="HOST",
        action="append",
        default=[],
        help="a further name of this service, as in the Host header; repeatable",
    )
    parser.add_argument(
        "--cors",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="a web origin whose pages may call the service; repeatable",
    )
    parser.add_argument(
        "--max-queued", metavar="N", type=int, default=100, help="most jobs that may wait (100)"
    )
    parser.add_argument(
        "--trust-settings", action="store_true", help="no ceilings for the settings of requests"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            "the service needs packages that are not installed: pip install 'vp3d[serve]'"
        )
    if not 0 <= arguments.port < 65536:
        raise UserError(f"--port {arguments.port} is not a port; take one of 1 to 65535")
    from vp3d.serve.server import check_address, serve
    from vp3d.serve.settings import ServiceSettings, given_token, kept_token

    data = Path(arguments.data).expanduser().absolute()
    token = given_token(arguments.token_file)
    check_address(arguments.host, token)
    own_token = not token and not arguments.no_token
    if own_token:
        token = kept_token(data)
    settings = ServiceSettings(
        data,
        arguments.host,
        arguments.port,
        token,
        tuple(check_origin(origin) for origin in arguments.cors),
        tuple(arguments.name),
        arguments.max_queued,
        arguments.trust_settings,
    )

    def show(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    return serve(settings, worker_count(arguments.workers), show, own_token)


def worker_count(text: str) -> int | None:
    """The value of --workers; None for "auto"."""
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or not 0 <= int(text) <= 64:
        raise UserError(f"--workers {text}: give a number from 0 to 64, or auto")
    return int(text)


def check_origin(origin: str) -> str:
    """An origin as browsers send it; UserError for `*` and for an address with a path."""
    scheme, _, rest = origin.partition("://")
    if scheme not in ("http", "https") or not rest or "/" in rest or "*" in rest:
        raise UserError(f"--cors {origin}: give an origin such as https://example.org")
    return origin.lower()
