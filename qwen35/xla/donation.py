"""Donated tensors: passed once, and marked when a call has consumed them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from . import trees
from .unusable import Donated


def check_distinct(
    name: str,
    donated: tuple[torch.Tensor, ...],
    data: Sequence[int],
    frozen: trees.FrozenTrees,
) -> None:
    """Raise ValueError if a donated tensor's data is passed more than once.

    Args:
        name: of the function that is called.
        donated: its tensors that are consumed.
        data: what identifies the data of each of these, and then of the other tensors outside
            frozen trees.
        frozen: the frozen trees among its arguments.
    """
    shared = len(set(data)) < len(data) and not set(data[: len(donated)]).isdisjoint(
        one for one, count in Counter(data).items() if count > 1
    )
    identities = set(map(id, donated))
    if shared or not all(identities.isdisjoint(flat.ids) for _, flat in frozen):
        raise ValueError(
            f"{name}: a donated tensor appears twice in the arguments; "
            "a tensor that is donated must be passed once"
        )


def consume(donated: tuple[torch.Tensor, ...]) -> None:
    """Mark the tensors whose memory a graph has taken."""
    for tensor in donated:
        tensor.__class__ = Donated
