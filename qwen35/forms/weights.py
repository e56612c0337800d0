"""Weights as the leaves of a parameter tree: a tensor, or a matrix that is stored in a special way.

Everything but the forms sees a matrix [K, N] with a shape, a dtype and a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True, eq=False)
class SpacedWeight:
    """A matrix [K, N] whose rows stand apart in memory: a pytree node with one tensor.

    Attributes:
        storage: [K, N + spare]; what stands in the spare columns has no effect.
        width: N.
    """

    storage: Tensor
    width: int

    @classmethod
    def of(cls, weight: Tensor, spare: int) -> SpacedWeight:
        """Copy a weight [K, N] to rows that are `spare` values of zero apart."""
        return cls(torch.nn.functional.pad(weight, (0, spare)), weight.shape[1])

    @property
    def shape(self) -> torch.Size:
        """The matrix's, whatever its storage is: [K, N]."""
        return torch.Size((self.storage.shape[0], self.width))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self.storage.dtype

    @property
    def device(self) -> torch.device:
        """Where the storage is."""
        return self.storage.device

    def __len__(self) -> int:
        return len(self.storage)


# What a product takes: a plain tensor [K, N], or a leaf that knows itself.
Weight = Tensor | SpacedWeight


def dense(weight: Weight) -> Tensor:
    """Return the matrix [K, N] as a tensor; of a spaced weight it is a view."""
    return weight if isinstance(weight, Tensor) else weight.storage[:, : weight.width]


def columns(weight: Weight, index: Tensor) -> Tensor:
    """Return the columns `index` [n] (int32 or int64, below N) of a matrix [K, N]: [K, n]."""
    matrix = weight if isinstance(weight, Tensor) else weight.storage
    return matrix.index_select(1, index)


def is_special(node: Any) -> bool:
    """Whether a node of a parameter tree is a weight that is not a tensor."""
    return isinstance(node, SpacedWeight)


def _flatten(weight: SpacedWeight) -> tuple[list[Any], int]:
    return [weight.storage], weight.width


pytree.register_pytree_node(
    SpacedWeight,
    _flatten,
    lambda children, width: SpacedWeight(*children, width),
    serialized_type_name="qwen35.SpacedWeight",
    flatten_with_keys_fn=lambda weight: (
        [(pytree.GetAttrKey("storage"), weight.storage)],
        weight.width,
    ),
)
