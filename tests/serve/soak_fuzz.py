"""Requests that no client would send: the command A5 of `python -m tests.serve.soak`."""

from __future__ import annotations

import argparse
import http.client
import json
import random
from pathlib import Path
from typing import Any

from tests.helpers.service import RunningService

WORDS = (
    *(
        "..",
        "../" * 6 + "etc/passwd",
        "%2e%2e%2f",
        "model.glb",
        "\0",
        "%00",
        "ü",
        "\u202e",
        "a" * 300,
    ),
    *("preview.png", "config.yaml", "../../outside/secret.txt", "-1", "0", "1e999", "NaN", "'; --"),
    *("%ff%fe", "%ed%a0%80", "run_", "job_", "*", "//", "\\..\\", "{}", "[]", "null", "true"),
)
VALUES = (
    *(None, True, 0, -1, 2**63, 2**70, 1e308, "", "a red cube", "\ud800", "\0", "x" * 5000, [], {}),
    *(
        ["glb"],
        [[]],
        {"a": 1},
        {"optim.steps": 10**9},
        {"prior.path": "/etc"},
        {"optim.steps": "x"},
    ),
    *(
        {"export.formats": ["../x"]},
        "../../outside/secret.txt",
        "/etc/passwd",
        0.5,
        "draft",
        "auto",
    ),
)
FIELDS = (
    *("prompt", "negative_prompt", "profile", "preset", "seed", "image", "choose", "formats"),
    *("settings", "priority", "prompts", "seeds", "faces", "candidate", "keep", "paused", "token"),
)
POSTS = (
    *("/v1/jobs", "/v1/batches", "/v1/uploads", "/v1/prompts/check", "/v1/session", "/v1/queue"),
    *("/v1/jobs/{}/cancel", "/v1/jobs/{}/choose", "/v1/jobs/{}/exports", "/v1/jobs/{}/resume"),
    *("/v1/jobs/{}/refine", "/v1/jobs/{}/priority"),
)
GETS = (
    *("/v1/jobs/{}", "/v1/jobs/{}/artifacts", "/v1/jobs/{}/artifacts/{}", "/static/{}", "/{}"),
    *("/v1/jobs?status={}&q={}&limit={}&cursor={}", "/v1/batches/{}", "/v1/vocabulary?profile={}"),
)


def fuzz(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """A5: requests that no client would send."""
    outside = root / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("treasure")
    service = RunningService(root / "data", "--max-queued", "1000000").start()
    client = service.client()
    known = client.submit("a red cube").id
    rng = random.Random(arguments.seed)
    before = {path for path in root.rglob("*") if service.data not in path.parents}
    statuses: dict[int, int] = {}
    leaked = 0
    for _ in range(arguments.requests):
        status, body = send(service.port, rng, known)
        statuses[status] = statuses.get(status, 0) + 1
        leaked += b"Traceback" in body or b"treasure" in body
    after = {path for path in root.rglob("*") if service.data not in path.parents}
    alive = client.job(known).status == "queued"
    service.stop()
    clean = "Traceback" not in service.log()
    errors = sum(count for status, count in statuses.items() if status >= 500)
    unanswered = statuses.get(0, 0)
    ok = not (leaked or errors or unanswered) and alive and clean and before == after
    return {
        "requests": arguments.requests,
        "statuses": dict(sorted(statuses.items())),
        "server_errors": errors,
        "unanswered": unanswered,
        "no_file_outside": before == after,
        "no_traceback": clean,
        "ok": ok,
    }


def send(port: int, rng: random.Random, known: str) -> tuple[int, bytes]:
    """One random request: its status, 0 for a connection that was closed, and its answer."""

    def word() -> str:
        return rng.choice((known, rng.choice(WORDS)))

    method = rng.choice(("GET", "GET", "POST", "POST", "POST", "DELETE", "PUT", "PATCH", "HEAD"))
    form = rng.choice(POSTS if method == "POST" else GETS)
    path = form.format(*(word() for _ in range(form.count("{}"))))
    if method == "DELETE" and path.endswith(known):
        method = "GET"
    if form.endswith("/cancel"):
        path = path.replace(known, "job_x")
    headers = {}
    for name in ("Range", "If-None-Match", "Idempotency-Key", "Last-Event-ID", "Content-Type"):
        if rng.random() < 0.3:
            text = rng.choice((word(), "bytes=0-", "bytes=-5", "bytes=9-1", "application/json"))
            headers[name] = "".join(c for c in text if 31 < ord(c) < 127)
    body = random_body(rng) if method in ("POST", "PUT", "PATCH") else None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        safe = "".join(c if 32 < ord(c) < 127 else "%00" if c == "\0" else "%C3%BC" for c in path)
        connection.putrequest(method, safe, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        reply = connection.getresponse()
        return reply.status, reply.read(4096)
    except (http.client.HTTPException, OSError):
        return 0, b""
    finally:
        connection.close()


def random_body(rng: random.Random) -> bytes:
    """A body that is JSON of the wrong kind, broken JSON, or bytes."""
    kind = rng.random()
    if kind < 0.65:
        names = rng.sample(FIELDS, rng.randint(0, 4))
        tree = {name: rng.choice(VALUES) for name in names}
        if rng.random() < 0.5:
            tree["prompt"] = rng.choice(("a red cube", rng.choice(VALUES)))
        return json.dumps(tree).encode("utf-8", "replace")
    if kind < 0.8:
        text = json.dumps({"prompt": "a red cube", "seed": 1}).encode()
        at = rng.randrange(len(text))
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    if kind < 0.9:
        png = b"\x89PNG\r\n\x1a\n" + rng.randbytes(rng.randint(0, 200))
        return png
    return rng.choice((b"", b"null", b"[" * 5000, b"{" * 300, rng.randbytes(500), b"1" * 100_000))


COMMANDS = {"fuzz": ("A5", fuzz)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--requests", type=int, default=2000, help="fuzz")
