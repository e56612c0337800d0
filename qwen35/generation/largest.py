"""The largest of many values, by maxima of blocks: neither a sort nor a top-k operation."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..sharding.split import Split
from ..xla.devices import indices

# Values of a block. Of 248,320 logits there are 3,880 maxima of 64, and 64 blocks hold 4,096.
_BLOCKS = 64, 16, 4
# Values of which each is compared with each.
_FEW = 256


def first_largest(x: Tensor, split: Split) -> Tensor:
    """Finds where the largest value of each row stands, of equal ones the first: ids [B] int64.

    Args:
        x: [B, n] float32, whole rows or this rank's block of them.
        split: which of the two.
    """
    if split.ways == 1:
        return x.argmax(-1)
    place = x.argmax(-1, keepdim=True)
    values, ids = split.gather(x.gather(1, place), split.ids_at(place).float())
    return ids.gather(1, values.argmax(1, keepdim=True))[:, 0, 0].long()


def largest_of(x: Tensor, count: int, split: Split) -> tuple[Tensor, Tensor]:
    """Finds the `count` largest of each row, as `largest`, of x as `first_largest` takes it.

    Returns:
        values [B, count] and their ids [B, count] int64, on all ranks.
    """
    values, places = largest(x, min(count, x.shape[1]))
    if split.ways == 1:
        return values, places
    found = split.gather(values, split.ids_at(places).float())
    values, ids = (part.flatten(1) for part in found)
    values, places = largest(values, count)
    return values, ids.gather(1, places).long()


def largest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Finds the `count` largest of each row, in falling order.

    They stand in the `count` blocks whose maxima are largest: a value of any other block has as
    many maxima before it. Those blocks are found among the maxima in the same way, and so are the
    values among those of the blocks, until there are few. x itself is read once.

    Args:
        x: [B, N] floating point; -inf is one of the values, and NaN stands above all.
        count: static, at most N.

    Returns:
        values [B, count] and where they stand in the row, [B, count] int64. Of equal values that
        are not all among the largest, which ones are is not said, but the first of all is the
        first of the largest, as argmax finds it.
    """
    # Above -inf, which stands for padding.
    found = _places(x.clamp(min=torch.finfo(x.dtype).min), count).long()
    return x.gather(1, found), found


def _places(x: Tensor, count: int) -> Tensor:
    """Returns where the `count` largest of x [B, N] stand, [B, count] int32; -inf is no value."""
    size = x.shape[1]
    # As many maxima as values in the blocks that are looked into, about.
    block = next((block for block in _BLOCKS if block**2 * count <= 2 * size), None)
    if size <= _FEW or block is None:
        return _ranked(x, count) if count > 1 else x.argmax(-1, keepdim=True).to(torch.int32)
    padding = -size % block
    values = F.pad(x, (0, padding), value=-math.inf) if padding else x
    blocks = values.unflatten(1, (-1, block))
    chosen = _places(blocks.amax(-1), count)
    candidates = blocks.gather(1, chosen.long()[..., None].expand(-1, -1, block)).flatten(1)
    ids = (chosen[..., None] * block + indices(block, x.device)).flatten(1)
    return ids.gather(1, _places(candidates, count).long())


def _ranked(x: Tensor, count: int) -> Tensor:
    """Does as `_places`, by how many values of the row come before each: of equal ones the first
    comes first."""
    x, here = torch.where(x.isnan(), math.inf, x), indices(x.shape[1], x.device)
    other, own = x[:, None, :], x[:, :, None]
    before = (other > own) | ((other == own) & (here < here[:, None]))
    rank = before.to(torch.int32).sum(-1, dtype=torch.int32)
    stands = rank[:, None, :] == indices(count, x.device)[:, None]
    return torch.where(stands, here, 0).sum(-1, dtype=torch.int32)
