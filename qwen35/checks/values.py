"""Values that a caller passed or a file holds: integers, numbers, token ids."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

_PART = 2**15 - 1  # values: torch shares 2**15 among its threads, for which callers have other work
_BITS = 2**18  # of bfloat16 values, looked at at once
_LONGEST = 80  # characters of a value that an error repeats
_LONGEST_TOLD = 400  # of what others say


def shown(value: Any) -> str:
    """Writes a value for an error's text, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return f"an integer of {value.bit_length():,} bits"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def told(error: BaseException) -> str:
    """Writes what an error of another library says, cut where it is long: it may quote a file."""
    text = str(error)
    return text if len(text) <= _LONGEST_TOLD else f"{text[: _LONGEST_TOLD - 1]}…"


def as_boolean(value: Any) -> Any:
    """Returns NumPy's and torch's truth values as Python's own, and anything else as it is."""
    scalar = isinstance(value, torch.Tensor) and value.dtype == torch.bool and not value.ndim
    return bool(value) if scalar or isinstance(value, np.bool_) else value


def as_integer(value: Any) -> int | None:
    """Returns what acts as an integer as an int, and None for anything else.

    Python's, NumPy's and torch's integers do (`operator.index`); truth values do not, nor do
    floating numbers, whatever their value, nor a tensor with a dimension, which is a list of one.
    """
    truth = isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool
    if truth or getattr(value, "ndim", 0):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def integer(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Returns an argument that must be an integer from `low` to `high`, as an int.

    Args:
        name: the argument's, for the error.
        value: whatever was passed; `as_integer` says what acts as an integer.
        low, high: bounds, both included; a high of None is none.

    Raises:
        ValueError: it is none, or out of bounds; the text has name, bounds and value.
    """
    found = as_integer(value)
    if found is None or found < low or (high is not None and found > high):
        if high is not None:
            wanted = f"an integer from {low} to {high}"
        else:
            wanted = "a positive integer" if low == 1 else f"an integer of at least {low}"
        raise ValueError(f"{name} must be {wanted}, not {shown(value)}")
    return found


def check_fits(what: str, size: int) -> None:
    """Checks that the machine's memory holds so many bytes, with what it swaps out.

    Raises:
        ValueError: it never does; the text has both numbers.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return  # no Linux: who asks for memory is told
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    held = found["MemTotal"] + found["SwapTotal"]
    if size > held:
        raise ValueError(
            f"{what}: {size // 10**6:,} MB, more than the {held // 10**6:,} MB of memory here"
        )


def as_number(value: Any) -> Any:
    """Returns what acts as a finite real number as Python's own, and None for anything else.

    NumPy's and torch's scalars do, with or without an array around them; truth values do not.
    """
    scalar = isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0
    if scalar or isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an integer beyond float64
        return None


def is_number(value: Any) -> bool:
    """Tells whether a value acts as a finite real number (`as_number`)."""
    return as_number(value) is not None


def positive_number(name: str, value: Any) -> float | int:
    """Returns an argument that must be a finite number above zero.

    Raises:
        ValueError: it is not; the text has name and value.
    """
    found = as_number(value)
    if found is None or found <= 0:
        raise ValueError(f"{name} must be a positive number, not {shown(value)}")
    return found


def token_ids(name: str, tokens: Iterable[Any], vocabulary: int) -> list[int]:
    """Returns tokens as ints, all of which must be ids of the vocabulary.

    Args:
        name: what holds them, for the error ("prompt 3").
        tokens: what acts as integers; or a NumPy or torch array [n] of an integer dtype.
        vocabulary: how many ids there are, from 0.

    Raises:
        ValueError: one is no integer or outside; the text has its value and the vocabulary's size.
            An array has other dimensions, or another dtype.
    """
    if isinstance(tokens, np.ndarray | torch.Tensor):
        tokens = _integers(name, tokens)
    ids = []
    for token in tokens:
        found = token if type(token) is int else as_integer(token)
        if found is None:
            raise ValueError(f"{name} has {shown(token)} where a token id is needed")
        if not 0 <= found < vocabulary:
            raise ValueError(
                f"{name} has token id {shown(found)}, outside the vocabulary of {vocabulary} "
                f"(0 to {vocabulary - 1})"
            )
        ids.append(found)
    return ids


def check_text(name: str, text: str) -> None:
    """Checks that a string can be written as UTF-8.

    Raises:
        ValueError: it is none, or has half of a character of UTF-16 (a lone surrogate), which is
            what Python makes of bytes of a command line that are not UTF-8.
    """
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a str, not of type {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} has {shown(text[error.start])} at character {error.start}, which is no "
            "character: half of one of UTF-16, or a byte that is not UTF-8"
        ) from None


def _integers(name: str, array: np.ndarray | torch.Tensor) -> list[int]:
    """Returns an array's values, of one that holds integers in one dimension."""
    kind = str(array.dtype).removeprefix("torch.")
    if array.ndim != 1 or not kind.startswith(("int", "uint")):
        raise ValueError(
            f"{name} is an array of {kind} and shape {list(array.shape)}, where token ids are "
            "needed: integers in one dimension"
        )
    return array.tolist()


def all_finite(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> bool:
    """Tells whether a tensor has no NaN and no infinite value, nor gets one as `dtype`.

    What has one has a sum that is not finite: adding up takes one reading, and no memory. Where
    the sum of finite values overflows, every value is looked at.
    """
    if tensor.dtype == torch.bfloat16:  # told from exponents: adding up takes twice as long
        bits = tensor.detach().reshape(-1).view(torch.int16).numpy()
        parts = (bits[start : start + _BITS] for start in range(0, len(bits), _BITS))
        return all(np.bitwise_and(part, 0x7FFF).max() < 0x7F80 for part in parts)
    parts = tensor.reshape(-1).split(_PART)
    if tensor.dtype == torch.float8_e4m3fn:  # which torch adds up on no processor
        dtype = torch.float32
    elif not tensor.is_floating_point():
        return True
    elif dtype is not None and dtype.itemsize >= tensor.itemsize:
        dtype = None
    if dtype is not None:
        parts = (part.to(dtype) for part in parts)
    return all(math.isfinite(part.sum()) or bool(part.isfinite().all()) for part in parts)
