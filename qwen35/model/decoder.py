"""The text decoder as pure functions: tokens and a state in, logits and a new state out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..forms import columns
from ..sharding.collectives import all_gather, all_reduce
from ..xla.devices import indices
from .all_ranks import on_all_ranks
from .attention import attention
from .checks import check_inputs, check_token
from .deltanet import deltanet
from .mlp import mlp
from .norms import rms_norm
from .params import Params
from .rope import rope_table
from .stacked_layers import like
from .state import AttentionState, DeltaNetState, State
from .tokens import last_token


@on_all_ranks(False, True, positions=1)
def forward(
    params: Params,
    state: State,
    tokens: Tensor,
    lengths: Tensor | None = None,
    embeds: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Runs T tokens of each row and returns the hidden state of every one.

    Args:
        params: the parameters.
        state: the state before the first of the tokens.
        tokens: [B, T] int32 or int64 ids; what stands beyond a row's length has no effect.
        lengths: [B] valid tokens per row, 0 to T; None means all T. A row of length 0 keeps its
            state bit for bit.
        embeds: [B, T, H] floating, taken for the token's embedding where the token is the config's
            `image_token_id` or `video_token_id`. What stands at any other token, or beyond a row's
            length, has no effect, whatever it is (NaN included). None embeds placeholders like
            words.
        positions: [3, B, T] int32 or int64, the rotary positions (t, h, w) from the start of the
            sequence; no effect beyond a row's length. None continues after the highest position
            of all tokens so far, by one per token in all three rows. Attention's order and the
            KV cache's slots never depend on them.

    Returns:
        hidden [B, T, H] after the final norm, in the parameters' dtype (meaningless beyond a
        row's length), and the new state. Its `rope_offset` makes the next text token's position
        one more than the highest so far, so that neither `decode` nor a later text-only
        `prefill` needs positions, wherever a prompt with images was cut.

    Raises:
        ValueError: shapes or dtypes do not fit. On CPU tensors also: token ids, positions or
            lengths out of range, or more tokens than the state's capacity.
    """
    check_inputs(params, state, tokens, lengths, embeds, positions)
    x, state = _blocks(params, state, tokens, lengths, embeds, positions)
    hidden = rms_norm(params.forms, x, params.norm, params.config.rms_norm_eps)
    return hidden.to(params.dtype), state


@on_all_ranks(False, True, positions=1)
def prefill(
    params: Params,
    state: State,
    tokens: Tensor,
    lengths: Tensor | None = None,
    embeds: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Runs T tokens of each row and returns the logits of each row's last one.

    Prefilling a, then b, equals prefilling a+b to rounding, at any split, inside an image too.
    Arguments, state and errors are those of `forward`.

    Returns:
        logits [B, V] float32 after token `lengths[b] - 1` (zeros for a row of length 0), and the
        new state.
    """
    share, state = prefill_share(params, state, tokens, lengths, embeds, positions)
    return all_gather(share, params.runtime.mesh), state


@on_all_ranks(True, True, positions=1)
def prefill_share(
    params: Params,
    state: State,
    tokens: Tensor,
    lengths: Tensor | None = None,
    embeds: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Runs what `prefill` runs, and leaves the logits split over the ranks: [B, V / tp]."""
    check_inputs(params, state, tokens, lengths, embeds, positions)
    x, state = _blocks(params, state, tokens, lengths, embeds, positions, last_only=True)
    result = _head(params, rms_norm(params.forms, x[:, 0], params.norm, params.config.rms_norm_eps))
    if lengths is not None:
        result = torch.where((lengths > 0)[:, None], result, 0.0)
    return result, state


@on_all_ranks(False, True)
def decode(
    params: Params, state: State, token: Tensor, active: Tensor | None = None
) -> tuple[Tensor, State]:
    """Runs one token of each row.

    Args:
        params: the parameters.
        state: the state before the token.
        token: [B] int32 or int64 ids; an inactive row's has no effect.
        active: [B] bool, or None when all rows are. An inactive row keeps its state bit for bit.

    Returns:
        logits [B, V] float32 (zeros for an inactive row) and the new state.

    Raises:
        ValueError: as for `forward`.
    """
    share, state = decode_share(params, state, token, active)
    return all_gather(share, params.runtime.mesh), state


@on_all_ranks(True, True)
def decode_share(
    params: Params, state: State, token: Tensor, active: Tensor | None = None
) -> tuple[Tensor, State]:
    """Runs what `decode` runs, and leaves the logits split over the ranks: [B, V / tp]."""
    check_token(token, active)
    lengths = None if active is None else active.to(torch.int32)
    return prefill_share(params, state, token[:, None], lengths)


@on_all_ranks(False)
def logits(params: Params, hidden: Tensor) -> Tensor:
    """The head: hidden [..., H] after the final norm to logits [..., V], float32."""
    return all_gather(_head(params, hidden), params.runtime.mesh)


def _head(params: Params, hidden: Tensor) -> Tensor:
    return params.forms.matmul(hidden, params.head, dtype=torch.float32)


def _blocks(
    params: Params,
    state: State,
    tokens: Tensor,
    lengths: Tensor | None,
    embeds: Tensor | None,
    positions: Tensor | None,
    last_only: bool = False,
) -> tuple[Tensor, State]:
    """All layers, before the final norm: x [B, T, H], or [B, 1, H] if `last_only`."""
    config, forms, mesh = params.config, params.forms, params.runtime.mesh
    length = tokens.shape[1]
    step = indices(length, tokens.device)
    valid = None if lengths is None else step < lengths[:, None]
    placeholder = None if embeds is None else _placeholders(params, tokens, valid)
    if valid is not None:
        tokens = torch.where(valid, tokens, 0)
    x = forms.activations(_embed(params, tokens))
    if placeholder is not None and embeds is not None:
        x = torch.where(placeholder[..., None], embeds.to(x.dtype), x)
    position, offset = state.position, state.rope_offset
    if positions is None:
        rope = rope_table(config, (position + offset)[:, None] + step)
    else:
        rope = rope_table(config, positions)

    layer: Any  # of the kind that the state's layer says
    new: DeltaNetState | AttentionState
    new_layers = []
    for index, (layer, old) in enumerate(zip(params.layers, state.layers, strict=True)):
        normed = rms_norm(forms, x, layer.input_norm, config.rms_norm_eps)
        # What the last layer gives for other tokens than a row's last would be thrown away.
        narrow = last_only and length > 1 and index == len(params.layers) - 1
        if isinstance(old, DeltaNetState):
            mixed, new = deltanet(params, layer, old, normed, lengths, narrow)
        else:
            mixed, new = attention(params, layer, old, normed, rope, position, lengths, narrow)
        if narrow:
            x = last_token(x, lengths)
        x = x + all_reduce(mixed, mesh)
        normed = rms_norm(forms, x, layer.post_norm, config.rms_norm_eps)
        x = x + all_reduce(mlp(forms, layer, normed), mesh)
        new_layers.append(new)
    advance = length if lengths is None else lengths.to(position.dtype)
    if positions is not None:
        offset = _next_offset(state, positions, valid, advance)
    return x, State(position + advance, offset, like(state.layers, new_layers))


def _placeholders(params: Params, tokens: Tensor, valid: Tensor | None) -> Tensor:
    """Where a token stands for a part of an image or a video: [B, T] bool."""
    config = params.config
    here = (tokens == config.image_token_id) | (tokens == config.video_token_id)
    return here if valid is None else here & valid


def _next_offset(
    state: State, positions: Tensor, valid: Tensor | None, advance: int | Tensor
) -> Tensor:
    """The offset [B] that puts the next text token one beyond the highest position so far.

    The highest so far, not of these tokens: a piece of an image can lie below an earlier one.
    """
    highest = positions.to(torch.int32).amax(0)  # [B, T]
    if valid is not None:
        highest = torch.where(valid, highest, -1)
    following = torch.maximum(state.position + state.rope_offset, highest.amax(1) + 1)
    return following - (state.position + advance)


def _embed(params: Params, tokens: Tensor) -> Tensor:
    flat = tokens.flatten()
    if params.tp_index is not None:
        # This rank holds some of the vocabulary; other ids get their embedding from their rank.
        flat, here = params.vocabulary.locate(flat)
    if params.embed is None:  # tied: the head [H, V] serves both
        x = columns(params.head, flat).T
    else:
        x = params.embed.index_select(0, flat)
    if params.tp_index is not None:
        x = all_reduce(torch.where(here[:, None], x, 0.0), params.runtime.mesh)
    return x.unflatten(0, tuple(tokens.shape))
