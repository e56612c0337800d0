"""Sizes to compile for: every distinct one is a graph of its own, and padding costs time.

All that generation and evaluation pad or reserve is rounded here. What may grow without end has
sizes that are the further apart the larger they are, so that few do (`_rounded`). (The vision
tower's patches have such sizes of their own, see `vision.frames`.)
"""

from __future__ import annotations

import math

_SMALLEST = 16
_CHUNK_STEP = 64
_CAPACITY_STEP = 128  # attention on XLA:CPU has fast products for such counts of slots


def doubling(tokens: int) -> int:
    """Rounds up to a power of two of at least 16: fewest sizes, for what is met again and again at
    any length."""
    return _rounded(tokens, _SMALLEST, 1)


def prefill_chunk(tokens: int, limit: int) -> int:
    """Sizes the equal prefill steps, of at most `limit` tokens each, that `tokens` take.

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


def parts(chunk: int, count: int) -> tuple[int, ...]:
    """Sizes the prefill steps of an engine: `count` equal parts of the chunk, one to all of them
    together; fewer where they are the same."""
    return tuple(sorted({-(-chunk * part // count) for part in range(1, count + 1)}))


def part_count(prompts: int) -> int:
    """Counts the sizes of an engine's prefill steps (`parts`) that pay for so many prompts.

    A further size is a graph more to compile, and n sizes of a chunk of C tokens pad a prompt by
    C / 2n on average. Compiled and padded together is least at n = sqrt(prompts · C / 2 / c), with
    c the prompt tokens that are read in the time of a compilation: 70 of 9B on two cores,
    far more of a toy or on a fast device. Here c is 2,000, with engines' chunks of 128.
    """
    return min(8, max(1, round(math.sqrt(prompts / 32))))


def rows(count: int, unit: int = 1) -> int:
    """Sizes a batch for so many rows, some of which may then be empty: calls of a similar number
    share graphs, and none has half as many rows more than it needs.

    Args:
        count: at least 1.
        unit: what the size is a multiple of.
    """
    return -(-_rounded(count, 1, 2) // unit) * unit


def capacity(tokens: int) -> int:
    """Sizes a state that is made for one call of so many tokens: calls of similar length share
    graphs, and none has a quarter more than it needs, beyond 512."""
    return _rounded(tokens, _CAPACITY_STEP, 4)


def _rounded(count: int, unit: int, parts: int) -> int:
    """Rounds up to a power of two of units, or to one of the sizes that cut what is between two
    such into so many equal parts."""
    units = -(-max(count, 1) // unit)
    step = max(1, (1 << (units - 1).bit_length()) // (2 * parts))
    return -(-units // step) * step * unit
