"""The gated DeltaNet mixer: causal convolution, delta rule, gated norm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import qwen35.kernels as kernels

from ..forms import Plain
from .norms import gated_rms_norm, l2_norm
from .params import DeltaNetLayer, Params
from .segments import SomeLayers
from .state import DeltaNetState
from .tokens import last_token


def deltanet(
    params: Params | SomeLayers,
    layer: DeltaNetLayer,
    state: DeltaNetState,
    projected: Tensor,
    lengths: Tensor | None,
    last_only: bool = False,
    see: Callable[..., None] | None = None,
) -> tuple[Tensor, DeltaNetState]:
    """Mixes T tokens into the state.

    Args:
        params: for configuration and static choices.
        layer: this layer's parameters.
        state: this layer's state.
        projected: what `in_proj` makes of T normed tokens, [B, T, N].
        lengths: valid tokens per row, or None when all are.
        last_only: all tokens change the state, but only each row's last one has an output.
        see: is called with values inside, by their names.

    Returns:
        What `out_proj` takes, [B, T, Hv · Dv], or [B, 1, Hv · Dv] if `last_only`, and the new
        state; a row of length 0 keeps its own.
    """
    config, forms = params.config, params.forms
    tokens = projected.shape[1]
    key_size, value_size = config.linear_key_head_dim, config.linear_value_head_dim
    # Local widths: a mesh leaves a rank a share of the heads.
    value_heads = layer.a_log.shape[0]
    value_dim = value_heads * value_size
    channels = layer.conv.shape[1]
    key_dim = (channels - value_dim) // 2

    widths = [channels, value_dim, value_heads, value_heads]
    qkv, z, b, a = projected.split(widths, dim=-1)
    mixed, conv = causal_conv(forms, qkv, layer.conv, state.conv, lengths)
    heads, value = mixed.split([2 * key_dim, value_dim], dim=-1)
    query, key = l2_norm(forms, heads.unflatten(-1, (-1, key_size))).chunk(2, dim=2)
    query = query * key_size**-0.5
    value = value.unflatten(-1, (-1, value_size))
    # e^88 is about the largest float32: infinity times a softplus of 0 would be NaN.
    log_decay = -layer.a_log.clamp(max=88.0).exp() * F.softplus(a.float() + layer.dt_bias)
    beta = b.float().sigmoid()
    if lengths is not None:
        # A token with beta = 0 and log decay 0 leaves the state as it is.
        valid = (
            torch.arange(tokens, device=projected.device)[None, :, None] < lengths[:, None, None]
        )
        log_decay, beta = torch.where(valid, log_decay, 0.0), torch.where(valid, beta, 0.0)

    inputs = (query, key, value, log_decay, beta)
    out, recurrent = kernels.gated_delta_rule(
        *inputs,
        state.recurrent,
        chunk=params.runtime.chunk,
        implementation=params.runtime.kernels,
        exact=projected.dtype == torch.float32,
        plan=params.runtime.kernel_plan,
        active=None if lengths is None else lengths > 0,
    )
    if last_only:
        out, z = last_token(out, lengths), last_token(z, lengths)
    z = z.unflatten(-1, (-1, value_size))
    if see is not None:
        see(query=query, key=key, value=value, log_decay=log_decay, beta=beta, read=out, gate=z)
    out = gated_rms_norm(forms, out, z, layer.norm, config.rms_norm_eps).to(projected.dtype)
    return out.flatten(2), DeltaNetState(conv, recurrent)


def causal_conv(
    forms: Plain, x: Tensor, weight: Tensor, history: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution and SiLU; x [B, T, C], weight [K, C], history [B, K-1, C].

    Returns float32 [B, T, C] and the K-1 inputs that precede the next token of each row, held as
    `history` holds them.
    """
    taps, tokens = weight.shape[0], x.shape[1]
    window = torch.cat([history, forms.stored(x, history)], dim=1)
    inputs, weight = forms.widen(window), forms.widen(weight)
    out = forms.silu(sum(inputs[:, tap : tap + tokens] * weight[tap] for tap in range(taps)))
    if lengths is None:
        return out, window[:, tokens:]
    if tokens == 1:  # cheaper than to gather
        return out, torch.where(lengths[:, None, None] > 0, window[:, 1:], history)
    index = lengths[:, None] + torch.arange(taps - 1, device=x.device)
    index = index.to(torch.int64)[:, :, None].expand(-1, -1, x.shape[2])
    return out, window.gather(1, index)
