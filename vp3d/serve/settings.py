"""What the owner of a service decides when it starts."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from vp3d.errors import UserError
from vp3d.jobs.request import Limits

TOKEN_VARIABLE = "VP3D_TOKEN"
TOKEN_FILE = "token"  # below the data folder, made on the first start
LEAST_TOKEN = 12  # characters
COOKIE = "vp3d_session"


@dataclass(frozen=True)
class ServiceSettings:
    """Limits and addresses of a service.

    Attributes:
        data: the data folder, absolute.
        host: the address it listens on.
        port: the port it listens on.
        token: what a client must present; "" asks for nothing.
        cors: origins of other sites that may call it.
        max_queued: most jobs that may wait.
        trusted: settings of requests have no ceilings.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 8765
    token: str = ""
    cors: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()  # further names that a client may use for this service
    max_queued: int = 100
    trusted: bool = False
    max_json: int = 64 << 10  # bytes of a JSON body
    max_picture: int = 10 << 20  # bytes of an uploaded picture
    rate: float = 10.0  # submits a second, in the long run
    burst: int = 20  # submits at once
    max_streams: int = 32  # event streams at once

    @property
    def limits(self) -> Limits:
        """What a request may ask for."""
        return Limits(self.trusted)

    def session(self) -> str:
        """The value of the cookie that stands for the token."""
        return hmac.new(self.token.encode(), b"vp3d session 1", hashlib.sha256).hexdigest()

    def names(self) -> set[str]:
        """The values of the Host header that are this service's."""
        own = {"localhost", "127.0.0.1", "[::1]", *self.hosts}
        if not is_everywhere(self.host):
            own.add(f"[{self.host}]" if ":" in self.host else self.host)
        return {name.lower() for host in own for name in (host, f"{host}:{self.port}")}


def is_loopback(host: str) -> bool:
    """Whether nothing but this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_everywhere(host: str) -> bool:
    """Whether the address means all interfaces."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def given_token(file: str | None) -> str:
    """The token of `--token-file` or of VP3D_TOKEN; "" if there is neither.

    Raises UserError for a file that cannot be read, and for a token that is too short.
    """
    if file is not None:
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise UserError(f"--token-file {file} cannot be read: {error}") from error
        source = f"--token-file {file}"
    else:
        token, source = os.environ.get(TOKEN_VARIABLE, "").strip(), TOKEN_VARIABLE
        if not token:
            return ""
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable():
        raise UserError(
            f"{source}: a token has {LEAST_TOKEN} or more printable ASCII characters; make one "
            'with: python -c "import secrets; print(secrets.token_urlsafe(24))"'
        )
    return token


def kept_token(data: Path) -> str:
    """The token of a data folder, made on the first call; only its owner can read it."""
    path = data / TOKEN_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    data.mkdir(parents=True, exist_ok=True)
    token = secrets.token_urlsafe(24)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(token + "\n")
    return token
