"""Picking tokens out of a batch of rows that are padded to one length."""

from __future__ import annotations

from torch import Tensor


def last_token(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Each row's last valid token of x [B, T, ...]: [B, 1, ...].

    `lengths` [B] counts the valid tokens, None means all T; an empty row gives its first token.
    """
    if x.shape[1] == 1:
        return x
    if lengths is None:
        return x[:, -1:]
    index = (lengths.long() - 1).clamp(min=0)
    return x.gather(1, index.view(-1, *[1] * (x.dim() - 1)).expand(-1, 1, *x.shape[2:]))
