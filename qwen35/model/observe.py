"""What layers compute on the way: `forward` that also returns values inside, chosen beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks.values import integer, shown
from ..forms import Plain
from .checks import check_inputs
from .decoder import run_layers
from .norms import rms_norm
from .params import Params
from .parts import Part
from .state import State

OBSERVABLE = (
    *("residual", "mixer", "mlp", "query", "key", "value", "gate", "read"),
    *("log_decay", "beta", "weights"),
)


class Observed(NamedTuple):
    """What `observe` returns.

    hidden, state: as `forward` returns them. values: by name and by the layer's index; a layer
    that does not compute a value has no entry.
    """

    hidden: Tensor
    state: State
    values: dict[str, dict[int, Tensor]]


def observe(
    params: Params,
    state: State,
    tokens: Tensor,
    lengths: Tensor | None = None,
    embeds: Tensor | None = None,
    positions: Tensor | None = None,
    *,
    what: Sequence[str] = ("residual",),
    layers: Sequence[int] | None = None,
) -> Observed:
    """Runs `forward`, and returns values inside its layers with what that returns.

    Nothing is patched and nothing kept: a value is a result. `what` and `layers` are static, so
    `jit(observe)` computes what was asked for and no more. With a mesh, heads are a rank's own.

    Args:
        params, state, tokens, lengths, embeds, positions: those of `forward`; of one rank.
        what: of "residual" (what a layer is given, before its norm), "mixer", "mlp" (what its two
            halves add), all [B, T, H]; "query", "key", "value" [B, T, heads, D], as the mixer uses
            them: after convolution and L2 norm, or after norm and RoPE, a DeltaNet query scaled;
            "read" [B, T, heads, D], what comes out of the state or the cache, and "gate" of its
            shape, both before the gate's function; "log_decay" and "beta" [B, T, Hv], float32, of
            DeltaNet; "weights" [B, Hq, T, capacity], float32, of attention.
        layers: indices; None is all.

    Raises:
        ValueError: as `forward`; an unknown name or layer; or parameters of all ranks at once.
    """
    unknown = [name for name in what if name not in OBSERVABLE]
    if isinstance(what, str) or unknown:
        known = ", ".join(OBSERVABLE)
        raise ValueError(f"what must be some of {known}, not {shown(unknown or what)}")
    if params.runtime.rank is None:
        raise ValueError("these are the parameters of all ranks: observe takes one rank's")
    last = params.config.num_hidden_layers - 1
    chosen = range(last + 1) if layers is None else [integer("layers", n, 0, last) for n in layers]
    values: dict[str, dict[int, Tensor]] = {name: {} for name in what}

    def see(layer: int, **seen: Tensor) -> None:
        if layer not in chosen:
            return
        if "weights" in values and "last_slot" in seen:
            weights = _weights(params.forms, seen["query"], seen["keys"], seen["last_slot"])
            values["weights"][layer] = weights
        for name in seen.keys() & values.keys():
            values[name][layer] = seen[name]

    check_inputs(params, state, tokens, lengths, embeds, positions)
    part = Part(state, tokens, lengths, embeds, positions)
    x, [state] = run_layers(params, [part], see=see)
    hidden = rms_norm(params.forms, x, params.norm, params.config.rms_norm_eps)
    return Observed(hidden.to(params.dtype), state, values)


def _weights(forms: Plain, query: Tensor, keys: Tensor, last_slot: Tensor) -> Tensor:
    """Attention's weights [B, Hq, T, capacity] of queries [B, T, Hq, D], as the textbook has them.

    keys: [B, Hkv, D, capacity], as a state holds them. last_slot: as for `Plain.attend`.
    """
    kv_heads, capacity = keys.shape[1], keys.shape[3]
    grouped = query.float().unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)
    scores = grouped * query.shape[-1] ** -0.5 @ forms.widen(keys)[:, :, None]
    visible = torch.arange(capacity, device=keys.device) <= last_slot[:, None, None, :, None]
    return torch.where(visible, scores, float("-inf")).softmax(-1).flatten(1, 2)
