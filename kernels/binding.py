"""Puts the NKI kernels in the place of the torch operations: which kernel, in which shapes.

What differs between the two forms is adapted here and nowhere else. Who runs a kernel is an
argument, a `Launcher`: `neuron.launch` traces it into the XLA graph, `host.launch` runs it on the
emulator.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Kernel(NamedTuple):
    """An NKI kernel: a module beside this one, and the function in it."""

    module: str
    function: str


class Plan(NamedTuple):
    """Static choices of the NKI kernels, for where a device does not take the faster one.

    Attributes:
        gpsimd: whether GpSimd does elementwise work, beside masks, or VectorE all of it.
        float16: whether 16-bit operands that are bounded by 1 are float16, three bits finer, so
            that some products have one of each kind; else every 16-bit operand is bfloat16.
    """

    gpsimd: bool = True
    float16: bool = True


DEFAULT_PLAN = Plan()


STEP = Kernel("nki_recurrent", "gated_delta_step")
CHUNK = Kernel("nki_chunk", "gated_delta_chunk")
PREFILL = Kernel("nki_fused", "gated_delta_prefill")
KERNELS = (STEP, CHUNK, PREFILL)

# What the kernels take. Their modules can be imported only where `nki` is, so the limits stand
# here too; a test holds them together.
CHUNK_TOKENS = 128
CHUNKS_OF_A_CALL = 1024  # 128-token chunks times rows times value heads
HEADS_PER_KEY_HEAD = 8
HEAD_SIZES = (16, 32, 64, 128)


class Launcher(Protocol):
    """Runs a kernel on tensors in the shapes and dtypes of its docstring.

    `static` holds compile-time values. Returns the output, in the value's dtype or wider, and the
    new state in float32.
    """

    def __call__(self, kernel: Kernel, *operands: Tensor, **static: bool) -> tuple[Tensor, Tensor]:
        """Returns output and state."""
        ...


def gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    *,
    exact: bool,
    launch: Launcher,
    plan: Plan = DEFAULT_PLAN,
) -> tuple[Tensor, Tensor]:
    """`kernels.gated_delta_rule` by the NKI kernels: the same arguments and results.

    One call of the step for T = 1, of the chunk for T up to 128, of the prefill beyond, with
    tokens that change nothing (beta = 0, log_decay = 0) up to a multiple of 128. Where a call
    would be over 1024 chunks times value heads, there are several: first over rows, then over
    tokens with the state handed on.

    Raises:
        ValueError: head sizes or counts that the kernels do not take, or a tensor that requires
            gradients while they are recorded.
    """
    tensors = (query, key, value, log_decay, beta, state)
    _check(key, value, tensors)
    dtype = value.dtype
    query, key, value = (x if x.dtype == torch.bfloat16 else x.float() for x in tensors[:3])
    inputs = (query, key, value, log_decay.float(), beta.float())
    state = state.float()
    if key.shape[1] == 1:
        query, key, value, log_decay, beta = (x.squeeze(1) for x in inputs)
        operands = (query, key, value, decay_of(log_decay), beta, state)
        out, state = launch(STEP, *operands, **plan._asdict())
        return out.unsqueeze(1).to(dtype), state

    rows = CHUNKS_OF_A_CALL // value.shape[2]
    parts = [
        _rows(part[:5], part[5], launch, exact=exact, **plan._asdict())
        for part in zip(*(_split(x, rows, 0) for x in (*inputs, state)), strict=True)
    ]
    out, state = (_join(list(pieces), 0) for pieces in zip(*parts, strict=True))
    return out.to(dtype), state


def decay_of(log_decay: Tensor) -> Tensor:
    """exp(log_decay) for decode steps: near 1 as float32 has it, whatever the device's exp.

    A decay of 1 - d is applied some 1/d times before the state has forgotten, so its error counts
    1/d times. A third party found ScalarE's exp, which graphs may use too, off by 1.5e-5: with
    decays of 0.999 that is 1.5 % of the state. Above exp(-1/2) this is the exponential series to
    its eighth power, off by less than 1e-8, in multiplications and additions; below, an error
    counts at most three times.

    Args:
        log_decay: any shape, at most 0, float32.

    Returns:
        The same shape, float32; exactly 1 where log_decay is 0.
    """
    series = torch.ones_like(log_decay)
    for power in range(8, 0, -1):
        series = 1 + log_decay * (1 / power) * series
    half = torch.full_like(log_decay, -0.5)  # a Python number is compared in float64 on XLA
    return torch.where(log_decay > half, series, log_decay.exp())


def _rows(
    inputs: tuple[Tensor, ...], state: Tensor, launch: Launcher, **static: bool
) -> tuple[Tensor, Tensor]:
    """Two tokens or more of as many rows as one call can take at all."""
    batch, _, heads = inputs[-1].shape
    tokens = CHUNKS_OF_A_CALL // (batch * heads) * CHUNK_TOKENS
    outputs = []
    for piece in zip(*(_split(x, tokens, 1) for x in inputs), strict=True):
        length = piece[0].shape[1]
        if length <= CHUNK_TOKENS:
            kernel = CHUNK
        else:
            kernel = PREFILL
            piece = _pad(piece, -length % CHUNK_TOKENS)
        out, state = launch(kernel, *piece, state, **static)
        outputs.append(out if out.shape[1] == length else out[:, :length])
    return _join(outputs, 1), state


def _pad(inputs: tuple[Tensor, ...], missing: int) -> tuple[Tensor, ...]:
    """Zeros after the last token, dimension 1."""
    if not missing:
        return inputs
    return tuple(F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing)) for x in inputs)


def _split(x: Tensor, size: int, dim: int) -> tuple[Tensor, ...]:
    """Pieces of at most `size`; `x` itself, and no operation in the graph, where one suffices."""
    return (x,) if x.shape[dim] <= size else x.split(size, dim)


def _join(pieces: list[Tensor], dim: int) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def _check(key: Tensor, value: Tensor, tensors: tuple[Tensor, ...]) -> None:
    instead = "kernels='portable' takes any"
    key_heads, key_size = key.shape[2:]
    value_heads, value_size = value.shape[2:]
    if key_size not in HEAD_SIZES or value_size not in HEAD_SIZES:
        raise ValueError(
            f"the NKI kernels take head sizes of {', '.join(map(str, HEAD_SIZES))}, not "
            f"{key_size} for keys and {value_size} for values; {instead}"
        )
    if value_heads % key_heads or value_heads > HEADS_PER_KEY_HEAD * key_heads:
        raise ValueError(
            f"the NKI kernels take 1 to {HEADS_PER_KEY_HEAD} value heads for each key head, not "
            f"{value_heads} for {key_heads}; {instead} multiple"
        )
    if value_heads > CHUNKS_OF_A_CALL:
        raise ValueError(
            f"the NKI kernels take up to {CHUNKS_OF_A_CALL} value heads, not {value_heads}; "
            f"{instead} number"
        )
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise ValueError(
            "the NKI kernels have no backward pass: call them under torch.no_grad(), or choose "
            "kernels='portable', which has one"
        )
