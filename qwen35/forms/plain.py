"""The textbook forms, for every device and every exported graph."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..xla.devices import device_put, indices, matmul_float32
from .weights import Weight, dense


class Plain:
    """The operations that the model's functions call. It has no state."""

    name = "plain"

    def place(self, weight: Tensor, device: str) -> Weight:
        """Put the weight [K, N] of a linear map on "cpu" or "xla", stored as products want it."""
        return device_put(weight, device)

    def matmul(self, x: Tensor, weight: Weight, dtype: torch.dtype | None = None) -> Tensor:
        """x [..., K] @ weight [K, N]: [..., N], accumulated in float32.

        The result has `dtype`: float32, or x's own if that is None.
        """
        matrix = dense(weight)
        return x @ matrix if dtype in (None, x.dtype) else matmul_float32(x, matrix)

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the last axis of x [..., N]: [..., 1]."""
        return x.mean(-1, keepdim=True)

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the last axis of x [..., N]: [..., 1]."""
        return x.sum(-1, keepdim=True)

    def silu(self, x: Tensor) -> Tensor:
        """x * sigmoid(x), element by element."""
        return F.silu(x)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, last_slot: Tensor) -> Tensor:
        """Softmax attention over a KV cache.

        Args:
            query: [B, T, Hq, D], scaled.
            key: [B, Hkv, D, capacity].
            value: [B, Hkv, capacity, D].
            last_slot: [B, T] int32, the last slot of the cache that each query sees.

        Returns:
            [B, T, Hq, D] in the value's dtype; scores and weights are float32.
        """
        kv_heads, capacity = value.shape[1:3]
        # Queries of one KV head side by side: a product for each KV head.
        query = query.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)  # [B, Hkv, group, T, D]
        scores = (query.flatten(2, 3) @ key).float().unflatten(2, query.shape[2:4])
        visible = indices(capacity, key.device) <= last_slot[:, None, None, :, None]
        scores = torch.where(visible, scores, float("-inf"))
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        out = (weights.to(value.dtype).flatten(2, 3) @ value).float().unflatten(2, query.shape[2:4])
        # Normalised last: D divisions a query, not one for each slot.
        out = (out / weights.sum(-1, keepdim=True)).to(value.dtype)
        return out.permute(0, 3, 1, 2, 4).flatten(2, 3)

    def attend_within(self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor) -> Tensor:
        """Softmax attention of all patches of a frame to each other.

        Args:
            query, key, value: [F, P, heads, D], the query scaled.
            valid: [1, P] bool, the patches of every frame to attend to, the first among them.

        Returns:
            [F, P, heads, D] in the value's dtype; scores and weights are float32.
        """
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # [F, heads, P, D]
        scores = (query @ key.mT).float()
        scores = torch.where(valid[:, None, None], scores, float("-inf"))
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        out = (weights.to(value.dtype) @ value).float() / weights.sum(-1, keepdim=True)
        return out.to(value.dtype).transpose(1, 2)
