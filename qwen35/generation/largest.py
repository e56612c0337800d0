"""The largest of many values, by maxima of blocks: neither a sort nor a top-k operation."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.loop import scan
from ..sharding.split import Split
from ..xla.devices import indices

# Values of a block. Of 248,320 logits there are then 3,880 maxima, and 64 blocks hold 4,096.
_BLOCK = 64


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
    many maxima before it. Those blocks are found by taking the largest maximum `count` times, and
    what is looked for among their values likewise. x itself is read once.

    Args:
        x: [B, N] floating point; -inf is one of the values.
        count: static, at most N.

    Returns:
        values [B, count] and where they stand in the row, [B, count] int64. Of equal values that
        are not all among the largest, which ones are is not said, but the first of all is the
        first of the largest, as argmax finds it.
    """
    # Above -inf, which stands for what has been taken, and for padding.
    values, padding = x.clamp(min=torch.finfo(x.dtype).min), -x.shape[1] % _BLOCK
    if padding:
        values = F.pad(values, (0, padding), value=-math.inf)
    blocks = values.unflatten(1, (-1, _BLOCK))
    chosen = _pick(blocks.amax(-1), min(count, blocks.shape[1]))
    candidates = blocks.gather(1, chosen[..., None].expand(-1, -1, _BLOCK)).flatten(1)
    ids = chosen[..., None].to(torch.int32) * _BLOCK + indices(_BLOCK, x.device)
    found = ids.flatten(1).gather(1, _pick(candidates, count)).long()
    return x.gather(1, found), found


def _pick(x: Tensor, count: int) -> Tensor:
    """Returns where the `count` largest of x [B, N] stand, [B, count] int64."""
    here = indices(x.shape[1], x.device)

    def take(rest: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        best = rest.argmax(-1, keepdim=True).to(torch.int32)
        return torch.where(here == best, -math.inf, rest), best

    _, found = scan(take, x, indices(count, x.device))
    return found[..., 0].T.long()
