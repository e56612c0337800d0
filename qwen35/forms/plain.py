"""The textbook forms, for every device and every exported graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..xla.devices import device_put, indices, matmul_float32
from ..xla.host_memory import written
from .weights import JoinedWeight, QuantizedWeight, Weight, dense, halved, numbers


class Plain:
    """The operations that the model's functions call. It has no state."""

    name = "plain"

    def store(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: str,
        write: Callable[[Tensor], None] | None,
    ) -> Weight:
        """Store the weight [K, N] of a linear map on "cpu" or "xla" as products want it.

        Args:
            shape: K and N; of tensors that no product reads, any shape.
            dtype: of the weight.
            device: where it goes.
            write: is called once, with a tensor of the host of that shape, and writes all of it;
                None stores nothing: what comes back, on XLA, is to compile for.
        """
        return written(shape, dtype, device, write)

    def place(self, weight: Weight, device: str) -> Weight:
        """Put the weight [K, N] of a linear map on "cpu" or "xla", stored as products want it: on
        XLA, FP8 as the E4M3 that all of Trainium multiplies."""
        return device_put(halved(weight) if device == "xla" else weight, device)

    def matmul(self, x: Tensor, weight: Weight, dtype: torch.dtype | None = None) -> Tensor:
        """x [..., K] @ weight [K, N]: [..., N], accumulated in float32.

        The result has `dtype`: float32, or x's own if that is None.
        """
        if isinstance(weight, JoinedWeight):
            return torch.cat([self.matmul(x, part, dtype) for part in weight.parts], dim=-1)
        if isinstance(weight, QuantizedWeight) and weight.scales_products:
            return _scaled_products(x, weight).to(dtype or x.dtype)
        matrix = dense(weight)
        return x @ matrix if dtype in (None, x.dtype) else matmul_float32(x, matrix)

    def state_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the tensors in which a state keeps values of a dtype: the same."""
        return dtype

    def stored(self, x: Tensor, like: Tensor) -> Tensor:
        """x, floating point, as a state's tensor `like` holds values: in its dtype."""
        return x.to(like.dtype)

    def activations(self, x: Tensor) -> Tensor:
        """x of the parameters' dtype, in the dtype that layers compute in: the same."""
        return x

    def widen(self, x: Tensor) -> Tensor:
        """x in float32; what `stored` returned is read with it."""
        return x.float()

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
            query: [B, T, Hq, D], scaled, in the dtype of `activations`.
            key: [B, Hkv, D, capacity].
            value: [B, Hkv, capacity, D].
            last_slot: [B, T] int32, the last slot of the cache that each query sees.

        Returns:
            [B, T, Hq, D] in the query's dtype; scores and weights are float32.
        """
        kv_heads, capacity = value.shape[1:3]
        # Queries of one KV head side by side: a product for each KV head.
        query = query.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)  # [B, Hkv, group, T, D]
        scores = (query.flatten(2, 3) @ key).float().unflatten(2, query.shape[2:4])
        visible = indices(capacity, key.device) <= last_slot[:, None, None, :, None]
        weights = torch.where(visible, scores, float("-inf")).softmax(-1).to(value.dtype)
        out = (weights.flatten(2, 3) @ value).unflatten(2, query.shape[2:4])
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
        mask = valid[:, None, None]
        if query.device.type == "cpu":  # one kernel; a graph would get operands widened to float32
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
        else:
            scores = torch.where(mask, (query @ key.mT).float(), float("-inf"))
            out = scores.softmax(-1).to(value.dtype) @ value
        return out.transpose(1, 2)


def _scaled_products(x: Tensor, weight: QuantizedWeight) -> Tensor:
    """x [..., K] @ weight [K, N], float32: scales multiply what products of the stored numbers of a
    group add up to, so that no matrix of what these stand for is written down."""
    stored = numbers(weight, x.dtype)
    if weight.per_column:
        return matmul_float32(x, stored) * weight.scales[0]
    groups = len(weight.scales)
    parts = x.reshape(-1, groups, weight.group).transpose(0, 1)
    products = matmul_float32(parts, stored.unflatten(0, (groups, -1)))  # [groups, rows, N]
    return (products * weight.scales[:, None]).sum(0).view(*x.shape[:-1], -1)
