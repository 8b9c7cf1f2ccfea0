"""Change valid files at random, by a named generator: as bytes, as text and as JSON."""

from __future__ import annotations

import copy
import json
import random
import zlib
from typing import Any

TOKENS = (  # what parsers fail at
    *("{", "}", "[", "]", "[" * 3000, '{"a":' * 3000, '"', "'", ":", ",", "\n", "\r", "\t", "#"),
    *("nan", "NaN", "inf", "Infinity", "-Infinity", "1e999", "-1", "0", "1e-400", "9" * 400),
    *("9" * 5000, "null", "true", "~", "!!python/object:os.system x", "&a", "*a", "<<: *a"),
    *(
        "../../../etc/passwd",
        "/dev/zero",
        "\0",
        "\ud800",
        "\ufeff",
        "\u2028",
        "é",
        "💥",
        "%s%n",
        "a" * 10_000,
        "2026-02-30",
    ),
    *("=", "=yes", "a=b=c", "0x10", "1_000", "1:30:00", "- - - -", "? ", "|", ">", "@", "`"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 10**299, 1e308, -0.0, 1e-320),
    *("", "x", "nan", "../x", "/dev/zero", "\0", "\ud800", "\udcff", "a" * 5000, [], {}, [[]]),
    *([None], {"": None}, [1, "2", None], {"a": {"b": {"c": []}}}, [0] * 1000),
)


def generator(*names: object) -> random.Random:
    """The generator of one input, by its names: the same in every run."""
    return random.Random(" ".join(map(str, names)))


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to eight changes: bytes flipped, runs removed, doubled, moved or replaced."""
    if rng.random() < 0.5:
        return overwrite(data, rng)
    found = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(found) + 1)
        size = min(int(rng.expovariate(1 / 12)) + 1, 4096)
        kind = rng.randrange(8)
        if kind == 0 and found:
            found[min(at, len(found) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del found[at : at + size]
        elif kind == 2:
            found[at:at] = rng.randbytes(size)
        elif kind == 3:
            found[at:at] = found[at : at + size]
        elif kind == 4:
            found[at : at + 4] = rng.choice(
                (b"\xff" * 4, b"\0" * 4, b"\0\0\0\x80", b"\x7f\xff\0\1")
            )
        elif kind == 5:
            del found[at:]
        elif kind == 6:
            start = rng.randrange(len(found) + 1)
            found[at : at + size] = found[start : start + size]
        else:
            found[at:at] = rng.choice(TOKENS).encode("utf-8", "surrogatepass")
    return bytes(found)


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four bytes or numbers overwritten; its length stays."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(max(len(found) - 4, 1))
        new = rng.choice(
            (rng.randbytes(1), rng.randbytes(4), b"\xff" * 4, b"\0" * 4, b"\0\0\xc0\x7f")
        )
        found[at : at + len(new)] = new
    return bytes(found[: len(data)])


def mutate_glb(data: bytes, rng: random.Random) -> bytes:
    """A GLB whose JSON is changed as JSON, with lengths that fit, or whose bytes are."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    size = int.from_bytes(data[12:16], "little")
    text = json.dumps(mutate_json(json.loads(data[20 : 20 + size]), rng)).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + size :]
    length = (20 + len(text) + len(rest)).to_bytes(4, "little")
    return data[:8] + length + len(text).to_bytes(4, "little") + b"JSON" + text + rest


def mutate_png(data: bytes, rng: random.Random) -> bytes:
    """A PNG in which the content of some chunks is changed and their checksums fit."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    found, at = data[:8], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        if content and rng.random() < 0.5:
            content = overwrite(content, rng) if rng.random() < 0.7 else mutate_bytes(content, rng)
        total = zlib.crc32(kind + content).to_bytes(4, "big")
        found += len(content).to_bytes(4, "big") + kind + content + total
        at += 12 + size
    return found


def mutate_text(text: str, rng: random.Random) -> str:
    """`text` with one to four tokens put in, lines moved or characters removed."""
    for _ in range(rng.randint(1, 4)):
        lines = text.split("\n")
        kind, at = rng.randrange(5), rng.randrange(len(text) + 1)
        if kind == 0:
            text = text[:at] + rng.choice(TOKENS) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + rng.randint(1, 9) :]
        elif kind == 2:
            line = rng.randrange(len(lines))
            name, colon, _ = lines[line].partition(":")
            lines[line] = f"{name}{colon} {rng.choice(TOKENS)}"
            text = "\n".join(lines)
        elif kind == 3:
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
            text = "\n".join(lines)
        else:
            rng.shuffle(lines)
            text = "\n".join(lines)
    return text


def mutate_json(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one to three values or keys replaced, removed or renamed."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.randint(1, 3)):
        holder: Any = root
        key: Any = 0
        while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.8:
            holder = holder[key]
            key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        kind = rng.randrange(6)
        if kind == 0 and isinstance(holder, dict):
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice((key.upper(), key + "x", "", "../x", "kind"))] = holder.pop(key)
        elif kind == 2 and isinstance(holder[key], str):
            holder[key] = mutate_text(holder[key], rng)
        elif kind == 3 and isinstance(holder[key], int | float):
            holder[key] = holder[key] * rng.choice((-1, 0, 1.5, 10**6, 1e300))
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return root[0]


def mutated_json_file(text: bytes, rng: random.Random) -> bytes:
    """A JSON file with changed values (two of three times) or changed bytes."""
    if rng.random() < 0.35:
        return mutate_bytes(text, rng)
    changed = mutate_json(json.loads(text), rng)
    return json.dumps(changed).encode("utf-8", "surrogatepass")
