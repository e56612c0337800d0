"""The DeltaNet operations that the model calls, and the choice between implementations."""

from __future__ import annotations

import torch
from torch import Tensor

from . import binding, neuron, portable
from .binding import DEFAULT_PLAN, Plan

__all__ = ["DEFAULT_PLAN", "Plan", "gated_delta_rule"]


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
    exact: bool = True,
    plan: Plan = DEFAULT_PLAN,
    active: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The gated delta rule over T tokens: one recurrent step for T = 1, else chunks.

    Args:
        query, key: [B, T, Hk, Dk], L2-normalised; queries scaled by Dk^-1/2.
        value: [B, T, Hv, Dv]; log_decay (at most 0), beta: [B, T, Hv] float32.
        state: [B, Hv, Dk, Dv] float32.
        chunk: tokens of a prefill block of the portable form; the NKI kernels' have 128.
        implementation: "portable" (torch operations), "nki" (the NKI kernels, on a Neuron
            device), "auto" (NKI exactly when the tensors are on a Neuron device and `nki`
            imports, else portable), or "emulator" (the NKI kernels emulated on the host).
        exact: whether a prefill has to multiply in float32. Else the NKI kernels round the
            operands of most products to 16 bits; the state, decays and sums stay float32.
        plan: static choices of the NKI kernels.
        active: [B] bool: other rows keep their state bit for bit (a token with beta = 0 and log
            decay 0 can still turn -0 into 0), and have no meaningful output. None is all.

    Returns:
        Output [B, T, Hv, Dv] in the value's dtype and the new state, float32.

    Raises:
        ValueError: an implementation that is not there for these tensors, or that does not take
            their shapes.
    """
    inputs = (query, key, value, log_decay, beta)
    launch = _launcher(implementation, key.device)
    if launch is None and key.shape[1] == 1:
        inputs = (x.squeeze(1) for x in inputs)
        out, updated = portable.gated_delta_step(*inputs, state, active)
        return out.unsqueeze(1), updated
    if launch is None:
        out, updated = portable.gated_delta_prefill(*inputs, state, chunk=chunk)
    else:
        how = {"exact": exact, "launch": launch, "plan": plan}
        out, updated = binding.gated_delta_rule(*inputs, state, **how)
    return out, portable.updated_where(active, updated, state)


def _launcher(implementation: str, device: torch.device) -> binding.Launcher | None:
    """What runs the NKI kernels, or None for the portable form."""
    if implementation == "portable":
        return None
    if implementation == "emulator":
        if device.type != "cpu":
            raise ValueError(
                f"kernels='emulator' computes on the host, so it can't run on {device.type!r} "
                "tensors or be traced: device_put the model to 'cpu', or choose "
                "kernels='portable'"
            )
        from . import host  # the emulator, which nothing else needs

        return host.launch
    if implementation not in ("auto", "nki"):
        raise ValueError(
            f"kernels must be 'auto', 'portable', 'nki' or 'emulator', not {implementation!r}"
        )
    missing = neuron.missing(device)
    if missing is None:
        return neuron.launch
    if implementation == "auto":
        return None
    raise ValueError(f"kernels='nki' needs {missing}")
