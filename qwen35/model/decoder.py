"""The text decoder as pure functions: tokens and a state in, logits and a new state out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..sharding.collectives import all_gather, all_reduce
from . import segments
from .all_ranks import on_all_ranks
from .attention import attention
from .checks import check_inputs, check_token
from .deltanet import deltanet
from .mlp import mlp
from .norms import rms_norm
from .params import Params
from .parts import Part, enter, joined, split_tokens
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
        `prefill` needs positions, wherever a prompt with images was cut. A token beyond the
        state's capacity, which only a compiled step can meet, has a hidden state of NaN, and so
        have all after it in its row; other rows are as they are alone.

    Raises:
        ValueError: shapes or dtypes do not fit. On CPU tensors also: token ids, positions or
            lengths out of range, or more tokens than the state's capacity.
    """
    check_inputs(params, state, tokens, lengths, embeds, positions)
    x, [state] = run_layers(params, [Part(state, tokens, lengths, embeds, positions)])
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
        logits [B, V] float32 after token `lengths[b] - 1` (zeros for a row of length 0, NaN for one
        beyond the capacity), and the new state.
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
    [(share, state)] = last_logits(params, Part(state, tokens, lengths, embeds, positions))
    return share, state


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
        logits [B, V] float32 (zeros for an inactive row, NaN for one beyond the capacity) and the
        new state.

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


def last_logits(params: Params, *parts: Part) -> list[tuple[Tensor, State]]:
    """A rank's logits [B, V / tp] after each row's last token (zeros for a row of length 0), and
    the new state, of each part."""
    x, states = run_layers(params, parts, last_only=True)
    x = rms_norm(params.forms, x, params.norm, params.config.rms_norm_eps)
    shares = split_tokens(_head(params, x), [(len(part.tokens), 1) for part in parts])
    results = []
    for part, share, state in zip(parts, shares, states, strict=True):
        share = share[:, 0]
        if part.lengths is not None:
            share = torch.where((part.lengths > 0)[:, None], share, 0.0)
        results.append((share, state))
    return results


def run_layers(
    params: Params,
    parts: Sequence[Part],
    last_only: bool = False,
    see: Callable[..., None] | None = None,
) -> tuple[Tensor, list[State]]:
    """All layers, before the final norm. What has weights takes the tokens of all parts at once.

    Args:
        last_only: x has each row's last token only.
        see: is called with a layer's index and values inside it, by their names (`observe`).

    Returns:
        x [B, T, H], or `joined` of all parts, and the new states.
    """
    config = params.config
    x = enter(params, parts)
    around = [segments.Around(p.lengths, p.rotations(config), p.state.position) for p in parts]
    states = [part.state.layers for part in parts]
    context = (params.layers, config, params.runtime)
    runs = segments.runs(*context) if see is None else [segments.SomeLayers(*context)]
    if len(runs) == 1:
        x, new_layers = _through(runs[0], x, around, states, last_only, see)
    else:
        x, new_layers = segments.in_turn(_run, runs, x, around, states, last_only)
    sizes = [(len(p.tokens), 1 if last_only else p.tokens.shape[1]) for p in parts]
    last = zip(parts, split_tokens(x, sizes), strict=True)
    x = joined([part.within_capacity(tokens) for part, tokens in last])
    return x, [part.after(layers) for part, layers in zip(parts, new_layers, strict=True)]


def _run(x: Tensor, around: list[segments.Around], kept: Any, states: Any) -> Any:
    """A run of layers, as `segments.in_turn` wants it."""
    run, narrow = kept
    return _through(run, x, around, states, narrow)


def _through(
    some: segments.SomeLayers,
    x: Tensor,
    around: Sequence[segments.Around],
    states: Sequence[Sequence[Any]],
    narrow: bool,
    see: Callable[..., None] | None = None,
) -> tuple[Tensor, list[list[Any]]]:
    """Some layers: x as it comes out of the last, of each row's last token only if `narrow`, and
    each part's new states."""
    config, forms, mesh = some.config, some.forms, some.runtime.mesh
    sizes = [tuple(part.rope[0].shape[:2]) for part in around]
    layer: Any  # of the kind that the states' layers say
    new_layers: list[list[Any]] = [[] for _ in around]
    olds = zip(*states, strict=True)
    for index, (layer, old) in enumerate(zip(some.layers, olds, strict=True)):
        look = None if see is None else functools.partial(see, index)
        before = x
        # What the last layer gives for other tokens than a row's last would be thrown away.
        last_only = narrow and index == len(some.layers) - 1
        normed = rms_norm(forms, x, layer.input_norm, config.rms_norm_eps)
        pieces = split_tokens(forms.matmul(normed, layer.in_proj), sizes)
        outs = []
        for part, piece, state, kept in zip(around, pieces, old, new_layers, strict=True):
            how = (part.lengths, last_only, look)
            new: DeltaNetState | AttentionState
            if isinstance(state, DeltaNetState):
                out, new = deltanet(some, layer, state, piece, *how)
            else:
                out, new = attention(some, layer, state, piece, part.rope, part.position, *how)
            outs.append(out)
            kept.append(new)
        if last_only:
            rows = zip(split_tokens(x, sizes), around, strict=True)
            x = joined([last_token(tokens, part.lengths) for tokens, part in rows])
            sizes = [(size[0], 1) for size in sizes]
        mixed = all_reduce(forms.matmul(joined(outs), layer.out_proj), mesh)
        x = x + mixed
        normed = rms_norm(forms, x, layer.post_norm, config.rms_norm_eps)
        added = all_reduce(mlp(forms, layer, normed), mesh)
        x = x + added
        if look is not None:
            look(residual=before, mixer=mixed, mlp=added)
    return x, new_layers
