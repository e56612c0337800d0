"""Random numbers as a function of a key and a counter, in 32-bit integer operations.

Threefry-2x32 with 20 rounds, from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011). It needs additions, exclusive ors and shifts only: no state that neighbours could share,
no 64-bit product, and every number can be computed without those before it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..xla.devices import indices

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Draws two words of random bits for each key and counter.

    Args:
        key, counter: pairs of int32 words, of shapes that broadcast.

    Returns:
        A pair of int32 words; sums wrap around.
    """
    schedule = (*key, key[0] ^ key[1] ^ _PARITY)
    x, y = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            x = x + y
            y = _rotate(y, bits) ^ x
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + (group + 1)
    return x, y


def gumbel(key: Tensor, position: Tensor, size: int) -> Tensor:
    """Draws standard Gumbel noise [B, size], float32: row b's from key[b] and position[b] alone.

    Number i of a row and number i + ceil(size/2) are the two words of one counter. Values reach
    from -3.4 to 22.9: uniform numbers have 32 bits, and the small ones, which make the large
    values that win a draw, keep their full relative precision.

    Args:
        key: [B, 2] int32.
        position: [B] int32.
    """
    half = -(-size // 2)
    counter = (indices(half, key.device)[None], position[:, None])
    words = threefry((key[:, :1], key[:, 1:]), counter)
    return _gumbel(torch.cat(words, dim=1)[:, :size])


def gumbel_at(key: Tensor, position: Tensor, ids: Tensor, size: int) -> Tensor:
    """Draws numbers ids [B, n], of 0 to size - 1, of each row of `gumbel(key, position, size)`."""
    half = -(-size // 2)
    ids = ids.to(torch.int32)
    second = ids >= half
    counter = (torch.where(second, ids - half, ids), position[:, None])
    first, other = threefry((key[:, :1], key[:, 1:]), counter)
    return _gumbel(torch.where(second, other, first))


def _gumbel(bits: Tensor) -> Tensor:
    """Turns int32 bits into standard Gumbel noise."""
    return -(-torch.log1p(-_uniform(bits))).log()


def _uniform(bits: Tensor) -> Tensor:
    """Turns int32 bits into float32 from 2^-33 to 1 - 2^-24; neither end can be 0 or 1."""
    high = (_shift_right(bits, 16) & 0xFFFF).float()
    low = (bits & 0xFFFF).float()
    return (high * 2.0**-16 + (low + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)


def _rotate(x: Tensor, bits: int) -> Tensor:
    left = torch.bitwise_left_shift(x, _scalar(bits, x))
    return left | (_shift_right(x, 32 - bits) & ((1 << bits) - 1))


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return torch.bitwise_right_shift(x, _scalar(bits, x))


def _scalar(value: int, like: Tensor) -> Tensor:
    # Under torch-xla `x >> 5` divides and a shift by a Python number computes in 64 bits.
    return torch.full((), value, dtype=torch.int32, device=like.device)
