"""The gated delta rule in plain torch operations: any device, differentiable.

Per value head, with the state S [Dk, Dv] and the token's decay a = exp(log_decay):

    S <- a S + k (beta (v - k^T (a S)))^T,    o = q^T S

Reference: Yang, Kautz, Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule"
(arXiv:2412.06464). The chunked form below is exact; only the order of summation differs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .loop import scan


def gated_delta_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    active: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token.

    Args:
        query, key: [B, Hk, Dk], L2-normalised; the query scaled by Dk^-1/2.
        value: [B, Hv, Dv]; value head h reads key head h // (Hv / Hk).
        log_decay: [B, Hv] float32, at most 0.
        beta: [B, Hv] float32.
        state: [B, Hv, Dk, Dv] float32.
        active: [B] bool, the rows whose state changes, or None for all.

    Returns:
        Output [B, Hv, Dv] in the value's dtype and the new state, float32.
    """
    key_heads = key.shape[1]
    repeats = value.shape[1] // key_heads
    decay = log_decay.float().exp()[:, :, None, None]
    query, key = (x.float().repeat_interleave(repeats, 1) for x in (query, key))
    # Two products of one row, the second with the new state: for those XLA:CPU has a faster form
    # than for one of two rows, and in this order it updates the state in place.
    recalled = decay * (key.unsqueeze(2) @ state)
    delta = beta.float()[:, :, None, None] * (value.float().unsqueeze(2) - recalled)
    state = updated_where(active, decay * state + key.unsqueeze(3) * delta, state)
    out = (query.unsqueeze(2) @ state).squeeze(2)
    return out.to(value.dtype), state


def updated_where(active: Tensor | None, updated: Tensor, state: Tensor) -> Tensor:
    """The updated state [B, Hv, Dk, Dv] of the active rows [B], the old one of the others."""
    if active is None:
        return updated
    return torch.where(active[:, None, None, None], updated, state)


def gated_delta_prefill(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    *,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Any number of tokens, in chunks: matrix products inside, the recurrence between.

    With D_ij the log decay accumulated after token j up to token i, and A the strictly lower
    part of beta_i (k_i . k_j) exp(D_ij), a chunk's corrections solve the unit lower triangular
    system (I + A) R = beta (V - exp(D_i) K S); then

        O  = exp(D_i) Q S + (lower (q_i . k_j) exp(D_ij)) R
        S' = exp(D_end) S + (exp(D_end,j) K)^T R

    Args:
        query, key: [B, T, Hk, Dk], L2-normalised; queries scaled by Dk^-1/2.
        value: [B, T, Hv, Dv]; value head h reads key head h // (Hv / Hk).
        log_decay, beta: [B, T, Hv] float32, log_decay at most 0; a token with beta = 0 and
            log_decay = 0 leaves the state as it is.
        state: [B, Hv, Dk, Dv] float32.
        chunk: the most tokens of a block; changes results by rounding only.

    Returns:
        Output [B, T, Hv, Dv] in the value's dtype and the new state, float32.
    """
    tokens, key_heads = key.shape[1:3]
    repeats = value.shape[2] // key_heads
    count = -(-tokens // chunk)
    length = -(-tokens // count)  # alike, so that little is padded

    def chunked(x: Tensor) -> Tensor:
        """[B, T, heads, D] to float32 [N, B, Hk, heads / Hk, C, D], zeros after the last token."""
        x = pad(x, (0, 0, 0, 0, 0, count * length - tokens)).float()
        return x.unflatten(1, (count, length)).permute(1, 0, 3, 2, 4).unflatten(2, (key_heads, -1))

    xs = tuple(map(chunked, (query, key, value, log_decay.unsqueeze(-1), beta.unsqueeze(-1))))
    state, out = scan(_chunk_step, state.unflatten(1, (key_heads, repeats)), xs)
    out = out.flatten(2, 3).permute(1, 0, 3, 2, 4).flatten(1, 2)  # [B, N · C, Hv, Dv]
    return out[:, :tokens].to(value.dtype), state.flatten(1, 2)


def _chunk_step(state: Tensor, chunk: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """One chunk: the state [B, Hk, R, Dk, Dv] after it, and its outputs [B, Hk, R, C, Dv].

    `chunk` is query and key [B, Hk, 1, C, Dk], value [B, Hk, R, C, Dv], log decay and beta
    [B, Hk, R, C, 1].
    """
    query, key, value, log_decay, beta = chunk
    length, key_size = key.shape[-2:]
    lower = _lower(length, key.device)
    strict = lower - torch.eye(length, device=key.device)
    whole = torch.ones(1, length, device=key.device)
    # Row j holds the sums over the tokens j+1..i for every i, the last row those over all tokens
    # up to i. Sums, not differences of one cumulative sum: after a strong decay those would lose
    # the weak decays that follow to cancellation.
    counted, kept = torch.cat([strict.mT, whole]), torch.cat([lower.mT, whole])
    sums = (counted * log_decay.mT) @ lower.mT
    decays = torch.where(kept > 0, sums, -torch.inf).exp()
    decay, from_start = decays.mT.split([length, 1], dim=-1)
    to_end = decay[..., -1, :].unsqueeze(-1)
    across = from_start[..., -1:, :]

    transposed = key.transpose(-1, -2)
    inverse = invert_unit_lower(beta * decay * (key @ transposed) * strict)
    attention = decay * (query @ transposed)
    # R is `wanted` less what `recall` finds in the state before the chunk.
    solved = inverse @ (beta * torch.cat([from_start * key, value], dim=-1))
    recall, wanted = solved.split([key_size, value.shape[-1]], dim=-1)
    # Side by side, what reads the state before the chunk, and what R enters.
    readers = torch.cat([recall, query * from_start], dim=-2)
    writers = torch.cat([attention, transposed * to_end.transpose(-1, -2)], dim=-2)
    recalled, answered = (readers @ state).chunk(2, dim=-2)
    within, written = (writers @ (wanted - recalled)).split([length, key_size], dim=-2)
    return across * state + written, answered + within


def invert_unit_lower(strictly_lower: Tensor) -> Tensor:
    """(I + A)^-1 for a strictly lower triangular A [..., C, C], any C, by merging blocks.

    Two inverted diagonal blocks and the block A21 below them give the inverse of the block that
    holds them all: its lower left is -T22 A21 T11. Unlike the Neumann product
    (I - A)(I + A^2)(I + A^4)..., no power of A is formed: those grow beyond fp32 before they
    vanish when keys are correlated.
    """
    size = strictly_lower.shape[-1]
    if size <= 32:
        return _invert_by_masks(strictly_lower)
    if size % 2:
        return invert_unit_lower(pad(strictly_lower, (0, 1, 0, 1)))[..., :size, :size]
    upper, lower = strictly_lower.chunk(2, dim=-2)
    first, lowest = upper.chunk(2, dim=-1)[0], lower.chunk(2, dim=-1)[1]
    first, last = invert_unit_lower(torch.stack([first, lowest])).unbind()
    below = -(last @ lower[..., : size // 2] @ first)
    return torch.cat([pad(first, (0, size // 2)), torch.cat([below, last], dim=-1)], dim=-2)


def _invert_by_masks(strictly_lower: Tensor) -> Tensor:
    """The same for a small matrix: all pairs of blocks of a size merge in two products of whole
    matrices, which is more arithmetic in fewer operations."""
    size = strictly_lower.shape[-1]
    device = strictly_lower.device
    same = torch.eye(size, device=device)  # which pairs of indices lie in one block
    inverse = same.expand(strictly_lower.shape)
    number = torch.arange(size, device=device)
    block = 1
    while block < size:
        number = number // 2
        merged = (number[:, None] == number).float()
        below = strictly_lower * (merged - same)
        if block > 1:  # blocks of one are their own inverses
            below = inverse @ below @ inverse
        inverse = inverse - below
        same = merged
        block *= 2
    return inverse


def _lower(size: int, device: torch.device) -> Tensor:
    """Ones on and below the diagonal, without `tril`."""
    index = torch.arange(size, device=device)
    return (index[:, None] >= index[None, :]).float()
