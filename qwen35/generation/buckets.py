"""Sizes to compile for: every distinct one is a graph of its own, and padding costs time.

All that generation and evaluation pad or reserve is rounded here. (The vision tower's patches have
sizes of their own, see `vision.frames`.)
"""

from __future__ import annotations

_SMALLEST = 16
_CHUNK_STEP = 64
_CAPACITY_STEP = 128


def doubling(tokens: int) -> int:
    """The power of two, at least 16, that holds `tokens`: few sizes, for what is met again and
    again at any length."""
    return max(_SMALLEST, 1 << (max(tokens, 1) - 1).bit_length())


def prefill_chunk(tokens: int, limit: int) -> int:
    """Tokens of each of the equal prefill steps, of at most `limit`, that `tokens` take.

    They are the fewest steps there can be. A power of two up to 64, then a multiple of that, or of
    half of it where several steps pay for what is padded: few graphs, and no prompt pays for a much
    longer one.
    """
    steps = -(-tokens // limit)
    each = -(-tokens // steps)
    if each <= _CHUNK_STEP:
        size = doubling(each)
    else:
        unit = _CHUNK_STEP if steps == 1 else _CHUNK_STEP // 2
        size = -(-each // unit) * unit
    return min(size, limit)


def capacity(tokens: int) -> int:
    """Tokens that a state made for one call holds, for `tokens`: calls of similar length share
    graphs, none pays for twice its length."""
    return round_capacity(tokens)


def round_capacity(tokens: int) -> int:
    """The next capacity in steps: attention on XLA:CPU gets a count of slots that its fast products
    take."""
    return -(-tokens // _CAPACITY_STEP) * _CAPACITY_STEP
