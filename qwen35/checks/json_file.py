"""JSON objects that somebody else wrote, read within bounds, and those that we write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import CheckpointError

_LARGEST = 64 * 2**20  # bytes; the index of a model with 100,000 tensors takes 12 MB
_DEEPEST = 127  # levels, as the library of safetensors reads them


def read_object(file: Path, what: str) -> dict[str, Any]:
    """Reads a file that holds one JSON object. Of equal keys in an object, the last one counts.

    Args:
        file: its path.
        what: what the object is, for errors ("a model's configuration").

    Raises:
        CheckpointError: the file is not there, not readable, larger than 64 MiB, not UTF-8, not
            JSON, nested more than 127 levels deep, or no object; the text names it.
    """
    try:
        with open(file, "rb") as content:
            text = content.read(_LARGEST + 1)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{file}: not readable ({reason}); {what} is needed") from None
    try:
        return parse_object(text, str(file), what)
    except CheckpointError:
        from .stand_ins import stand_in  # which needs torch: options are read without it

        other = stand_in(file)
        if other is not None:
            raise CheckpointError(f"{file}: {other}") from None
        raise


def parse_object(
    text: bytes | str, where: str, what: str, *, unique: bool = False
) -> dict[str, Any]:
    """Reads a JSON object from UTF-8 text; bounds and errors are those of `read_object`.

    Args:
        text: the whole object.
        where: where it stands, for errors.
        what: what it is.
        unique: refuse equal keys in an object, of which the last one counts otherwise.
    """
    if len(text) > _LARGEST:
        raise CheckpointError(f"{where}: over {_LARGEST:,} bytes, too large for {what}")
    too_deep = CheckpointError(f"{where}: over {_DEEPEST} levels deep, too deep for {what}")
    try:
        content = json.loads(
            text if isinstance(text, str) else text.decode("utf-8"),
            object_pairs_hook=_unique if unique else None,
        )
    except ValueError as error:
        raise CheckpointError(
            f"{where}: not readable as JSON ({error}); {what} is needed"
        ) from None
    except RecursionError:
        raise too_deep from None
    if _deeper(content, _DEEPEST):
        raise too_deep
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(f"{where}: {what} is a JSON object, not of type {kind}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{twice[:80]!r} stands twice")
    return found


def _deeper(content: Any, levels: int) -> bool:
    """Tells whether lists and objects are nested deeper than that many levels."""
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(levels):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def to_text(content: dict[str, Any]) -> bytes:
    """Writes an object as the UTF-8 text of a JSON file."""
    return json.dumps(content, indent=2).encode("utf-8") + b"\n"
