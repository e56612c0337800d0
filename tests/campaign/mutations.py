"""Damage to valid inputs: to JSON's structure, to its text, to bytes; and the smallest of it."""

from __future__ import annotations

import copy
import functools
import json
import random
from collections.abc import Callable
from typing import Any


def nested(levels: int, inner: Any = 0) -> Any:
    """A list in a list, and so on."""
    for _ in range(levels):
        inner = [inner]
    return inner


EXTREMES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**16, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63),
    *(10**30, 10**400, -(10**400), 0.0, -0.0, 0.5, 1.5, 1e-320, 1e308, -1e308),
    *(float("nan"), float("inf"), float("-inf")),
    *("", "0", "1", "x", "é", "\ud800", "\0", "a.b", "text_config.x", "../x", "a" * 5000),
    "🙂" * 300,
    *([], {}, [[]], [{}], {"": {}}, [None], ["x"], [0] * 1000, list(range(50)), {"a": {"b": []}}),
    *(nested(40), nested(150), nested(3, {"x": nested(3)})),
]  # fmt: skip


def places(content: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    todo = [content]
    while todo:
        parent = todo.pop()
        keys = parent.keys() if isinstance(parent, dict) else range(len(parent))
        for key in keys:
            found.append((parent, key))
            if isinstance(parent[key], dict | list):
                todo.append(parent[key])
    return found


def damaged(draw: random.Random, content: Any, times: int | None = None) -> Any:
    """A copy of a JSON value with one to three things changed in it."""
    if not isinstance(content, dict | list):
        return draw.choice(EXTREMES)
    content = copy.deepcopy(content)
    for _ in range(times or draw.choice((1, 1, 1, 2, 3))):
        found = places(content)
        if not found:
            return draw.choice(EXTREMES)
        parent, key = draw.choice(found)
        how = draw.randrange(9)
        if how == 0:
            del parent[key]
        elif how == 1:
            other, place = draw.choice(found)
            parent[key] = copy.deepcopy(other[place])
        elif how == 2 and isinstance(parent, dict):
            name = draw.choice(("x", "", "a.b", f"text_config.{key}", str(key).upper(), "é" * 300))
            parent[name] = parent.pop(key)
        elif how == 3 and isinstance(parent, dict):
            parent[draw.choice(("new", "vision_config.depth", "x" * 5000))] = copy.deepcopy(
                draw.choice(EXTREMES)
            )
        elif how == 4:
            parent[key] = draw.choice(([parent[key]], {"x": parent[key]}, str(parent[key])))
        elif how == 5 and type(parent[key]) in (int, float) and abs(parent[key]) < 2**64:
            value = parent[key]
            parent[key] = draw.choice((value + 1, value - 1, -value, value * 2, value * 2**20,
                                       value / 2, float(value), value // 2))  # fmt: skip
        elif how == 6 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            parent[key] = copy.deepcopy(draw.choice(EXTREMES))
    return content


def damaged_bytes(draw: random.Random, content: bytes, start: int = 0) -> bytes:
    """A copy of bytes with one to three things changed in them, from `start` on more often."""
    made = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        size = len(made)
        place = draw.randrange(min(start, size), size + 1) if size else 0
        length = draw.choice((1, 1, 2, 4, 8, draw.randrange(1, 64)))
        how = draw.randrange(7)
        if how == 0 and place < size:
            made[place] ^= 1 << draw.randrange(8)
        elif how == 1:
            del made[place:]
        elif how == 2:
            del made[place : place + length]
        elif how == 3:
            made[place:place] = draw.randbytes(length)
        elif how == 4:
            made[place : place + length] = draw.choice((b"\0", b"\xff", b"\x80", b"9")) * length
        elif how == 5:
            other = draw.randrange(size + 1)
            made[place:place] = made[other : other + length]
        elif place < size:
            made[place] = draw.randrange(256)
    return bytes(made)


def damaged_text(draw: random.Random, text: str) -> bytes:
    """JSON as text, damaged as text: keys twice, other encodings, numbers of other lengths."""
    content = text.encode("utf-8", "surrogatepass")
    how = draw.randrange(6)
    if how == 0:
        return text.encode(draw.choice(("utf-16", "utf-32", "utf-8-sig")), "surrogatepass")
    if how == 1:  # an object's first key twice
        place = content.find(b"{", draw.randrange(len(content)))
        end = content.find(b",", place)
        if 0 <= place < end:
            return content[: end + 1] + content[place + 1 : end + 1] + content[end + 1 :]
    if how == 2:
        digits = [n for n, byte in enumerate(content) if 48 <= byte <= 57]
        if digits:
            place = draw.choice(digits)
            more = draw.choice((b"0" * 5000, b"e400", b".5", b"-", b"_", b"0x", b"Infinity"))
            return content[:place] + more + content[place:]
    return damaged_bytes(draw, content)


def smallest(content: Any, original: Any, fails: Callable[[Any], bool], tries: int = 300) -> Any:
    """Of a damaged JSON value what still fails with the rest as in the original.

    Args:
        content: fails.
        original: does not.
        fails: tells of a value.
        tries: at most.
    """
    if not isinstance(content, dict) or not isinstance(original, dict):
        return content
    best = dict(content)
    for key in sorted(content.keys() | original.keys(), key=str):
        if tries <= 0:
            break
        tries -= 1
        attempt = dict(best)
        if key in original:
            attempt[key] = original[key]
        else:
            attempt.pop(key, None)
        if attempt != best and fails(attempt):
            best = attempt
    for key in best.keys() & original.keys():
        if isinstance(best[key], dict) and isinstance(original[key], dict):
            inside = functools.partial(_fails_inside, fails, best, key)
            best = best | {key: smallest(best[key], original[key], inside, tries)}
    return best


def _fails_inside(fails: Callable[[Any], bool], around: dict, key: Any, value: Any) -> bool:
    return fails(around | {key: value})


def difference(content: Any, original: Any) -> str:
    """What a damaged value has other than the original, for people."""
    if isinstance(content, dict) and isinstance(original, dict):
        parts = []
        for key in sorted(content.keys() | original.keys(), key=str):
            if key not in content:
                parts.append(f"without {key!r}")
            elif key not in original or repr(content[key]) != repr(original[key]):
                inner = difference(content[key], original.get(key))
                parts.append(f"{str(key)[:60]!r}: {inner}")
        return "{" + ", ".join(parts) + "}"
    try:
        return json.dumps(content)[:200]
    except (ValueError, RecursionError):
        return f"a {type(content).__name__}"
