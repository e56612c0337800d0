"""The DeltaNet operations that the model calls, and the choice between implementations."""

from __future__ import annotations

from torch import Tensor

from . import portable


def gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    *,
    chunk: int,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """The gated delta rule over T tokens: one recurrent step for T = 1, else chunks.

    Args:
        query, key: [B, T, Hk, Dk], L2-normalised; queries scaled by Dk^-1/2.
        value: [B, T, Hv, Dv]; log_decay (at most 0), beta: [B, T, Hv] float32.
        state: [B, Hv, Dk, Dv] float32.
        chunk: tokens of a prefill block.
        implementation: "auto" or "portable".

    Returns:
        Output [B, T, Hv, Dv] and the new state.
    """
    if implementation not in ("auto", "portable"):
        raise ValueError(f"kernels={implementation!r} needs AWS's nki package and a Neuron device")
    if key.shape[1] == 1:
        inputs = (x.squeeze(1) for x in (query, key, value, log_decay, beta))
        out, state = portable.gated_delta_step(*inputs, state)
        return out.unsqueeze(1), state
    inputs = (query, key, value, log_decay, beta)
    return portable.gated_delta_prefill(*inputs, state, chunk=chunk)
