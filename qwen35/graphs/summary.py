"""What a configuration comes to: parameters by kind, bytes of weights, state and cache."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..files.materialize import abstract_params
from ..model.config import FULL, Config
from ..model.declarations import VISION_PREFIX, declarations, declare
from ..model.state import state_bytes
from ..xla import trees


def summarize(
    config: Config, dtype: torch.dtype, *, weights: str | None = None, head: str | None = None
) -> dict[str, Any]:
    """Sizes of the model, as plain values for printing or JSON.

    Args:
        config: the model.
        dtype: of weights, hidden states and KV cache.
        weights, head: how `load` is to quantise, as there.

    Returns:
        `layers` by kind, `parameters` by kind (the vision tower is one, of 0 where there is none)
        and in total, and bytes: `weight_bytes`,
        `state_bytes_per_sequence` (DeltaNet layers, any length) and `kv_bytes_per_token`
        (attention layers).
    """
    declared = declare(config)
    deltanet = sum(kind != FULL for kind in config.layer_types)
    attention = config.num_hidden_layers - deltanet
    kinds = ("embedding", "deltanet", "attention", "mlp", "head", "norms", "vision")
    counts = dict.fromkeys(kinds, 0)
    for parameter in declarations(declared):
        name, size = parameter.pieces[0].source.name, math.prod(parameter.shape)
        counts[_kind(name)] += size
    held = abstract_params(config, dtype=dtype, weights=weights, head=head)
    weight_bytes = sum(tensor.nbytes for tensor in trees.tensors(held))
    state_per_sequence, kv_per_token = state_bytes(config, dtype)
    return {
        "layers": {"deltanet": deltanet, "attention": attention},
        "parameters": counts | {"total": sum(counts.values())},
        "dtype": str(dtype).removeprefix("torch."),
        "weights": weights,
        "head": head,
        "weight_bytes": weight_bytes,
        "state_bytes_per_sequence": state_per_sequence,
        "kv_bytes_per_token": kv_per_token,
        "tied_embeddings": config.tie_word_embeddings,
        "vocabulary": config.vocab_size,
        "hidden_size": config.hidden_size,
        "max_position_embeddings": config.max_position_embeddings,
        "unknown_config_keys": [name for name, _ in config.extra],
    }


def _kind(name: str) -> str:
    if name.startswith(VISION_PREFIX):
        return "vision"
    if name.startswith("lm_head"):
        return "head"
    if "embed_tokens" in name:
        return "embedding"
    for part, kind in (
        (".linear_attn.", "deltanet"),
        (".self_attn.", "attention"),
        (".mlp.", "mlp"),
    ):
        if part in name:
            return kind
    return "norms"


def render(name: str, summary: dict[str, Any]) -> str:
    """Renders the summary as lines for a terminal."""
    layers, parameters = summary["layers"], summary["parameters"]
    total = parameters["total"]
    kind_of_model = "vision-language" if parameters["vision"] else "text"
    lines = [
        f"{name}: Qwen3.5 {kind_of_model} model, {short_number(total)} parameters",
        f"layers      {layers['deltanet']} gated DeltaNet + {layers['attention']} attention, "
        f"hidden size {summary['hidden_size']}, vocabulary {summary['vocabulary']:,}",
    ]
    for kind, size in parameters.items():
        if kind == "total" or (kind in ("head", "vision") and not size):
            continue
        label = (
            "embedding = head (tied)"
            if kind == "embedding" and summary["tied_embeddings"]
            else kind
        )
        lines.append(f"  {label:<24}{short_number(size):>10}  {size / total:6.1%}")
    made = "".join(f", {name} {summary[name]}" for name in ("weights", "head") if summary[name])
    lines += [
        f"weights     {short_bytes(summary['weight_bytes'])} in {summary['dtype']}{made}",
        f"state       {short_bytes(summary['state_bytes_per_sequence'])} per sequence, any length",
        f"KV cache    {short_bytes(summary['kv_bytes_per_token'])} per token",
        f"positions   up to {summary['max_position_embeddings']:,}",
    ]
    if summary["unknown_config_keys"]:
        lines.append("not used    " + ", ".join(summary["unknown_config_keys"]))
    return "\n".join(lines)


def short_number(value: float) -> str:
    """Formats 1234567 as "1.23 M"."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value:.0f}"


def short_bytes(value: float) -> str:
    """Formats bytes in binary units: 1536 as "1.5 KiB"."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} B"
