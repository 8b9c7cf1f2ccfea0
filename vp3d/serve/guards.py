"""What stands between the network and the service: Host, Origin, token, size, rate, headers.

Host is checked because a foreign name that resolves to this machine would make its pages ours (DNS
rebinding); Origin because any web site can send requests to a local port. One ASGI layer, so that
event streams pass unbuffered.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vp3d.serve.problems import Problem, respond
from vp3d.serve.settings import COOKIE, ServiceSettings

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
PRIVATE = ("/v1", "/openapi.json")
FREE = ("/v1/session",)  # checks the token itself
LIMITED = ("/v1/jobs", "/v1/batches", "/v1/uploads")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self' blob: data:; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
VIEWER_POLICY = POLICY.replace("script-src 'self'", "script-src 'self' 'wasm-unsafe-eval'").replace(
    "style-src 'self'", "style-src 'self' 'unsafe-inline'; worker-src blob:"
)  # for model-viewer, which adds styles and compiles a decoder
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": POLICY,
}


class Rate:
    """A bucket of tokens: `burst` at once, `rate` a second afterwards."""

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self.level, self.last = float(burst), clock()
        self.lock = threading.Lock()

    def wait_s(self) -> float:
        """0 if a request may pass now, else after how many seconds."""
        with self.lock:
            now = self.clock()
            self.level = min(self.level + (now - self.last) * self.rate, float(self.burst))
            self.last = now
            if self.level >= 1.0:
                self.level -= 1.0
                return 0.0
            return (1.0 - self.level) / self.rate


class Guard:
    """The ASGI layer around the service."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self.app, self.settings = app, settings
        self.names = settings.names()
        self.rate = Rate(settings.rate, settings.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a problem."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        outgoing = self._with_headers(scope, headers, send)
        try:
            self._check(scope, headers)
        except Problem as problem:
            await respond(problem, scope["path"])(scope, receive, outgoing)
            return
        if scope["method"] == "OPTIONS" and headers.get("origin") in self.settings.cors:
            await outgoing({"type": "http.response.start", "status": 204, "headers": []})
            await outgoing({"type": "http.response.body", "body": b""})
            return
        endless = scope["path"].endswith("/events") or "event-stream" in headers.get("accept", "")
        if scope["method"] == "HEAD" and not endless:  # the server leaves the body out
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, outgoing)

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        path, method = scope["path"], scope["method"]
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if host not in self.names:
            raise Problem(403, "forbidden_host", f"{host[:80]!r} is not a name of this service")
        foreign = origin is not None and origin not in self.settings.cors
        if foreign and method not in SAFE_METHODS and not _same_origin(str(origin), host):
            raise Problem(403, "forbidden_origin", f"a page of {origin!r:.80} may not do this")
        if path.startswith(PRIVATE) and path not in FREE and method != "OPTIONS":
            self._check_token(headers)
        if method == "POST" and path in LIMITED:
            wait = self.rate.wait_s()
            if wait:
                retry = {"Retry-After": str(max(1, round(wait)))}
                raise Problem(429, "too_fast", "submit more slowly", headers=retry)

    def _check_token(self, headers: dict[str, str]) -> None:
        token = self.settings.token
        if not token:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and same_text(given.strip(), token):
            return
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        if cookie is not None and same_text(cookie.value, self.settings.session()):
            return
        raise Problem(
            401,
            "unauthorized",
            "send the token of this service as `Authorization: Bearer TOKEN`",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _with_headers(self, scope: Scope, headers: dict[str, str], send: Send) -> Send:
        origin = headers.get("origin")
        extra: dict[str, str] = dict(HEADERS)
        if origin is not None and origin in self.settings.cors:
            extra |= {
                "access-control-allow-origin": origin,
                "access-control-allow-headers": "authorization, content-type, idempotency-key",
                "access-control-allow-methods": "GET, POST, DELETE",
                "vary": "Origin",
            }

        async def outgoing(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message.get("headers", [])}
                added: list[Any] = [
                    (name.encode(), value.encode())
                    for name, value in extra.items()
                    if name.encode() not in present
                ]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        return outgoing


def same_text(given: str, right: str) -> bool:
    """Compare in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode("utf-8", "replace"))


def _same_origin(origin: str, host: str) -> bool:
    return origin.lower() in (f"http://{host}", f"https://{host}")
