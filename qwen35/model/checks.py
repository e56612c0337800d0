"""What a step's arguments have to be: checked before a graph is traced or run."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks.values import token_ids
from ..xla.turns import tracing_here
from .config import FULL
from .params import Params
from .state import AttentionState, State, abstract_state


def check_token(token: Tensor, active: Tensor | None) -> None:
    """Check what `decoder.decode` takes besides parameters and state.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    if token.dim() != 1:
        raise ValueError(f"token must be [B], not {list(token.shape)}")
    if active is not None and active.dtype != torch.bool:
        raise ValueError(f"active must be bool, not {active.dtype}")


def check_inputs(
    params: Params,
    state: State,
    tokens: Tensor,
    lengths: Tensor | None,
    embeds: Tensor | None,
    positions: Tensor | None,
) -> None:
    """Check all that can be known of a step's arguments before the graph runs.

    The arguments are those of `decoder.forward`. Values are looked at only on CPU tensors, and not
    while `jit` traces: a device would have to be read from, and a traced tensor has none.

    Raises:
        ValueError: shapes, dtypes, devices or values do not fit.
    """
    if torch.compiler.is_compiling():
        return  # jit has run all of this before it has the graph captured
    if tokens.dim() != 2 or tokens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"tokens must be [B, T] int32 or int64, not {list(tokens.shape)} {tokens.dtype}"
        )
    batch, length = tokens.shape
    if length == 0:
        raise ValueError("tokens has no column: a prompt needs at least one token")
    if batch != state.batch:
        raise ValueError(f"tokens has {batch} rows, the state {state.batch}")
    if lengths is not None:
        if lengths.shape != (batch,) or lengths.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"lengths must be [{batch}] int32 or int64, not {list(lengths.shape)} "
                f"{lengths.dtype}"
            )
    hidden = params.config.hidden_size
    if embeds is not None:
        if embeds.shape != (batch, length, hidden) or not embeds.is_floating_point():
            raise ValueError(
                f"embeds must be [{batch}, {length}, {hidden}] floating, not "
                f"{list(embeds.shape)} {embeds.dtype}"
            )
    if positions is not None:
        integer = positions.dtype in (torch.int32, torch.int64)
        if positions.shape != (3, batch, length) or not integer:
            raise ValueError(
                f"positions must be [3, {batch}, {length}] int32 or int64 (rows t, h, w), not "
                f"{list(positions.shape)} {positions.dtype}"
            )
    _check_devices(
        params,
        state=state.position,
        tokens=tokens,
        lengths=lengths,
        embeds=embeds,
        positions=positions,
    )
    _check_state(params, state)
    if tokens.device.type == "cpu" and not tracing_here.active:
        _check_values(params, state, tokens, lengths, positions)


def _check_devices(params: Params, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device.type != params.device.type:
            raise ValueError(
                f"{name} is on {tensor.device.type}, the parameters on {params.device.type}: "
                "device_put moves either"
            )


def _check_state(params: Params, state: State) -> None:
    """The state must be one of this model: kinds, shapes and dtypes of all layers."""
    kinds = [FULL if isinstance(layer, AttentionState) else "linear" for layer in state.layers]
    expected = [FULL if kind == FULL else "linear" for kind in params.config.layer_types]
    if kinds != expected:
        raise ValueError(
            f"the state has {len(kinds)} layers, {kinds.count(FULL)} of them attention; the model "
            f"has {len(expected)}, {expected.count(FULL)} of them attention (or in another order)"
        )
    wanted = abstract_state(params, state.batch, state.capacity or 1)
    for index, (old, new) in enumerate(zip(state.layers, wanted.layers, strict=True)):
        seen, expected = (
            [(list(tensor.shape[1:]), tensor.dtype) for tensor in layer] for layer in (old, new)
        )
        if seen != expected:
            raise ValueError(
                f"layer {index}'s state is another model's: per row it has {seen}, this model's "
                f"layer {expected}"
            )


def _check_values(
    params: Params,
    state: State,
    tokens: Tensor,
    lengths: Tensor | None,
    positions: Tensor | None,
) -> None:
    """What only data on the CPU can tell without a read-back from a device."""
    length, vocabulary = tokens.shape[1], params.config.vocab_size
    valid = torch.full_like(state.position, length) if lengths is None else lengths
    if lengths is not None and ((lengths < 0) | (lengths > length)).any():
        raise ValueError(f"lengths must be from 0 to T = {length}, not {lengths.tolist()}")
    here = torch.arange(length) < valid[:, None]
    if positions is not None and (positions[:, here] < 0).any():
        raise ValueError(f"positions must not be negative: {positions[:, here].min()} is")
    used = tokens[here]
    wrong = used[(used < 0) | (used >= vocabulary)]
    token_ids("tokens", wrong[:1].tolist(), vocabulary)
    capacity = state.capacity
    ends = state.position + valid
    if capacity is not None and (ends > capacity).any():
        row = int(torch.argmax(ends))
        raise ValueError(
            f"row {row} would reach {ends[row].item()} tokens ({state.position[row].item()} in the "
            f"state and {valid[row].item()} more), over the capacity of {capacity}"
        )
