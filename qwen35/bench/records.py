"""Results of measurements: dataclasses, and their way through JSON from process to process."""

from __future__ import annotations

import dataclasses
import statistics
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

Record = TypeVar("Record")


def to_plain(record: Any) -> dict[str, Any]:
    """Returns a record, and the records in it, as JSON has them."""
    return dataclasses.asdict(record)


def from_plain(kind: type[Record], plain: Mapping[str, Any]) -> Record:
    """Returns the record that `to_plain` took apart.

    Args:
        kind: a dataclass whose fields are numbers, texts, None, or tuples of such dataclasses.
        plain: by the fields' names.
    """
    hints = typing.get_type_hints(kind)
    return kind(**{name: _value(hints[name], value) for name, value in plain.items()})


def arguments_of(function: Callable[..., Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a function's arguments, of which `to_plain` took records apart."""
    hints = typing.get_type_hints(function)
    return {name: _value(hints[name], value) for name, value in plain.items()}


def _value(hint: Any, plain: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        return tuple(from_plain(typing.get_args(hint)[0], entry) for entry in plain)
    return from_plain(hint, plain) if dataclasses.is_dataclass(hint) else plain


def medians(records: Sequence[Record]) -> Record:
    """Returns a record with the median of each number; what is no number is the first record's."""
    values = {field.name: [getattr(r, field.name) for r in records] for field in
              dataclasses.fields(records[0])}  # fmt: skip
    return dataclasses.replace(
        records[0],
        **{
            name: statistics.median(several)
            for name, several in values.items()
            if all(isinstance(value, int | float) for value in several)
        },
    )
