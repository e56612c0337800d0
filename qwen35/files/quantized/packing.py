"""The orders in which published formats pack small integers into words of 32 bits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# AWQ: the column that each four bits of a word hold, from the lowest bits up.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack_rows(words: Tensor, bits: int) -> Tensor:
    """Unpacks words [R, N] int32 that hold consecutive rows, lowest bits first: GPTQ's weights.

    Returns:
        [R * 32 / bits, N] uint8.
    """
    count = 32 // bits
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)[None, :, None]
    values = (words[:, None] >> shifts) & (2**bits - 1)
    return values.to(torch.uint8).view(len(words) * count, -1)


def unpack_columns(words: Tensor, bits: int) -> Tensor:
    """Unpacks words [R, N] int32 that hold consecutive columns, lowest bits first: the weights of
    compressed-tensors, and GPTQ's zeros.

    Returns:
        [R, N * 32 / bits] uint8.
    """
    octets = words.contiguous().view(torch.uint8)  # little-endian, as all files are
    if bits == 8:
        return octets
    return torch.stack((octets & 15, octets >> 4), dim=-1).flatten(1)


def unpack_awq(words: Tensor) -> Tensor:
    """Unpacks words [R, N] int32 of eight columns each, in AWQ's order: [R, N * 8] uint8."""
    plain = unpack_columns(words, 4).unflatten(1, (-1, 8))
    order = torch.empty(8, dtype=torch.int64)
    order[list(_AWQ_ORDER)] = torch.arange(8)
    return plain[:, :, order].flatten(1)


def pack_columns(values: Tensor, bits: int) -> Tensor:
    """Packs values [R, N] uint8 into words: `unpack_columns` undone, columns of 0 at the end."""
    per_word = 32 // bits
    values = functional.pad(values, (0, -values.shape[1] % per_word))
    return (pack_pairs(values) if bits == 4 else values.contiguous()).view(torch.int32)


def pack_pairs(values: Tensor) -> Tensor:
    """Packs values [R, N] uint8 of 4 bits, N even, two a byte, the first in the low bits."""
    return values[:, ::2] | values[:, 1::2] << 4


def octets_of_rows(words: Tensor) -> Tensor:
    """Takes words [R, N] int32 that hold consecutive rows of 4 bits, lowest bits first, apart into
    bytes of two rows: [4 * R, N] uint8."""
    return words.contiguous().view(torch.uint8).unflatten(1, (-1, 4)).transpose(1, 2).flatten(0, 1)
