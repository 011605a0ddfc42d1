"""Damages records as disks, editors and strangers do: the same damage for the same seed."""

import copy
import json
import random
from typing import Any

ODD: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**63, 10**30, 1e308, -0.0, "", "nan", "inf", "0", "../../x", "/etc/passwd"),
    *("${oc.env:HOME}", "\x1b[2J", "\u202e", "\ud800", "???", "a" * 5000, [], {}, [[]], {"": {}}, [None] * 50),
]
"""Values in place of what a record says."""
TOKENS = [b"1e400", b"NaN", b"-Infinity", b"99999999999999999999999", b"[" * 2000, b'{"a":' * 2000, b'"', b"\\", b"\0"]


def mutated(content: bytes, generator: random.Random) -> bytes:
    """One damaged copy."""
    kind = generator.randrange(6)
    if kind == 0:
        return generator.randbytes(generator.randrange(4096))
    if kind == 1:
        return content[: generator.randrange(len(content) + 1)]
    if kind == 2:
        return _flipped(content, generator)
    if kind == 3:
        place = generator.randrange(len(content) + 1)
        return content[:place] + generator.choice(TOKENS) + content[place + generator.randrange(8) :]
    try:
        value = json.loads(content)
    except ValueError:
        return _flipped(content, generator)
    for _ in range(generator.randrange(1, 4)):
        _replace(value, generator)
    return json.dumps(value).encode()


def _flipped(content: bytes, generator: random.Random) -> bytes:
    flipped = bytearray(content)
    for _ in range(generator.randrange(1, 20)):
        flipped[generator.randrange(len(flipped))] ^= 1 << generator.randrange(8)
    return bytes(flipped)


def _replace(value: Any, generator: random.Random) -> None:
    """Put an odd value, or a key of none, somewhere into the record."""
    places = list(_places(value))
    if not places:
        return
    container, key = generator.choice(places)
    if isinstance(container, dict) and generator.random() < 0.2:
        container.pop(key, None)
    elif isinstance(container, dict) and generator.random() < 0.1:
        container[f"{key}@hydra"] = copy.deepcopy(generator.choice(ODD))
    else:
        container[key] = copy.deepcopy(generator.choice(ODD))


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)
