"""What a configuration comes to: parameters by kind, bytes of weights, state and cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..files.materialize import abstract_params
from ..model.config import FULL, Config
from ..model.declarations import VISION_PREFIX, declarations, declare
from ..model.params import Runtime
from ..model.state import abstract_state, state_bytes
from ..sharding.mesh import Mesh
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
        "max_context": config.max_context,
        "yarn_factor": None if config.yarn is None else config.yarn.factor,
        "unknown_config_keys": [name for name, _ in config.extra],
    }


@dataclass(frozen=True)
class ContextCost:
    """What a context of so many tokens takes on a rank.

    Attributes:
        tokens: of one sequence.
        positions: tokens that the checkpoint has positions for.
        yarn_factor: what YaRN stretches positions by, to reach the tokens; None where it need not.
        tp: ranks that the model is split over.
        kv_bytes: of the KV cache of one sequence on a rank; a decoded token reads all of it.
    """

    tokens: int
    positions: int
    yarn_factor: float | None
    tp: int
    kv_bytes: int

    def render(self) -> str:
        """Renders a line for a terminal."""
        where = "" if self.tp == 1 else f" on each of {self.tp} ranks"
        line = (
            f"context     {self.tokens:,}: {short_bytes(self.kv_bytes)} of KV cache for a "
            f"sequence{where}, all of it read for the last token"
        )
        if self.tokens <= self.positions:
            return line
        return (
            f"{line}; beyond the checkpoint's {self.positions:,} positions, so YaRN stretches "
            f"them by {self.yarn_factor:.4g} (--context of generate and chat, or rope_parameters "
            "in config.json), at all lengths, and short texts may suffer"
        )


def context_cost(
    config: Config, context: int, dtype: torch.dtype, mesh: Mesh | None = None
) -> ContextCost:
    """Counts what a context of `context` tokens takes on each rank of a mesh.

    Raises:
        ValueError: the mesh can't split the model, or no position can be that high.
    """
    yarn = config.extended(context).yarn
    held = abstract_params(config, dtype=dtype, runtime=Runtime(mesh=mesh))
    state = zip(abstract_state(held, 1, context).layers, config.layer_types, strict=True)
    cache = sum(tensor.nbytes for layer, kind in state if kind == FULL for tensor in layer)
    tp = 1 if mesh is None else mesh.tp
    factor = None if yarn is None else yarn.factor
    return ContextCost(context, config.max_context, factor, tp, cache)


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
    factor = summary["yarn_factor"]
    stretched = "" if factor is None else f", by YaRN with a factor of {factor:.4g}"
    lines += [
        f"weights     {short_bytes(summary['weight_bytes'])} in {summary['dtype']}{made}",
        f"state       {short_bytes(summary['state_bytes_per_sequence'])} per sequence, any length",
        f"KV cache    {short_bytes(summary['kv_bytes_per_token'])} per token",
        f"positions   up to {summary['max_context']:,}{stretched}",
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
