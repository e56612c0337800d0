"""Which tokens top-k, top-p and min-p leave, without a sort."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..sharding.split import Split
from ..xla.devices import indices

# Bits of a threshold that ranks find by one exchange, of as many sums as these have values.
_BITS_TOGETHER = 4


class Filters(NamedTuple):
    """top_k (0: off), top_p, min_p: [B] float32."""

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor


def kept(distance: Tensor, filters: Filters, split: Split | None = None) -> Tensor:
    """Tells which tokens top-k, top-p and min-p leave, bool [B, V].

    Args:
        distance: [B, V] >= 0, how far each logit is below the row's largest.
        filters: the rows' settings.
        split: as for `choose`.
    """
    split = split or Split(distance.shape[1])
    weight = torch.exp(-distance)
    top_k = torch.where(filters.top_k > 0, filters.top_k, math.inf)
    limit = _largest_below(torch.ones_like(distance), distance, top_k, split)
    weight = torch.where(distance <= limit[:, None], weight, 0.0)
    whole = split.sum(weight.sum(-1, keepdim=True)).squeeze(1)
    mass = torch.where(filters.top_p < 1, filters.top_p * whole, math.inf)
    limit = torch.minimum(limit, _largest_below(weight, distance, mass, split))
    return (distance <= limit[:, None]) & (weight >= filters.min_p[:, None])


def kept_candidates(distance: Tensor, filters: Filters) -> Tensor:
    """Tells which of a row's most likely tokens top-k, top-p and min-p leave, bool [B, n].

    Args:
        distance: [B, n] >= 0, rising, as for `kept`, of the n most likely tokens.
        filters: top_k from 1 to n; where it is 0, all n stay.
    """
    place = indices(distance.shape[1], distance.device)
    last = place == filters.top_k[:, None] - 1
    limit = torch.where(last, distance, 0.0).sum(-1, keepdim=True)
    limit = torch.where(filters.top_k[:, None] > 0, limit, math.inf)
    weight = torch.where(distance <= limit, torch.exp(-distance), 0.0)
    mass = torch.where(filters.top_p < 1, filters.top_p * weight.sum(-1), math.inf)
    nearer = distance[:, None, :] < distance[:, :, None]
    before = torch.where(nearer, weight[:, None, :], 0.0).sum(-1)
    enough = before < mass[:, None]
    return (distance <= limit) & enough & (weight >= filters.min_p[:, None])


def _largest_below(weight: Tensor, distance: Tensor, target: Tensor, split: Split) -> Tensor:
    """Finds the largest float32 t [B] for which the weights at distances < t sum below target.

    Tokens at distance t or less are then the fewest that reach the target, ties included. t is
    built bit by bit, the exponent first (2^-64 to 2^63, nearer to 0 is 0), then 23 bits of the
    fraction: exact, where halving an interval is not. A round tries a value for each bit, all
    with one comparison and sum each; ranks try the 15 values of four bits in a round, since an
    exchange takes them longer than sums.
    """

    def advance(t: Tensor, candidates: Tensor) -> Tensor:
        """Returns the largest of t [B] and the candidates [B, k] whose sum is below the target."""
        nearer = distance[:, None] < candidates[..., None]
        sums = split.sum(torch.where(nearer, weight[:, None], 0.0).sum(-1))
        return torch.where(sums < target[:, None], candidates, t[:, None]).amax(-1)

    together = 1 if split.ways == 1 else _BITS_TOGETHER
    t, least = torch.zeros_like(target), torch.full_like(target, 2.0**-64)
    for bits, rest in _rounds(7, together):
        first = bits + rest == 7
        powers = [2.0 ** (value << rest) for value in range(not first, 1 << bits)]
        start = least if first else t
        t = advance(t, torch.stack([start * power for power in powers], 1))
    unit = t
    for bits, _ in _rounds(23, together):
        unit = unit * 2.0**-bits
        values = (indices((1 << bits) - 1, t.device) + 1).float()
        t = advance(t, t[:, None] + unit[:, None] * values)
    return t


def _rounds(bits: int, together: int) -> list[tuple[int, int]]:
    """Lists rounds of at most `together` bits: how many each finds, and how many then remain."""
    ends = [*range(together, bits, together), bits]
    return [(end - start, bits - end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
