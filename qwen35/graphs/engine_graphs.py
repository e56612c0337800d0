"""The graphs that an engine runs, traced without weights, and what its steps exchange and cost."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from ..files.materialize import abstract_params
from ..generation import steps
from ..generation.batch import Batch
from ..model.config import Config
from ..model.dtypes import as_dtype, name_of
from ..model.params import Runtime
from ..reports.tables import markdown_table
from ..sharding.mesh import Mesh
from .costs import count_costs
from .design import Design, model_design
from .export import Graph
from .lowering import lower_call
from .roofline import collective_bytes
from .summary import short_bytes

# What each step returns; a value with an argument's name takes its memory.
RETURNS = {
    steps.prefill: ("rows",),
    steps.prefill_and_decode: ("row", "rows"),
    steps.decode: ("rows",),
    steps.choose: ("choice", "counts"),
    steps.force: ("replaced",),
    steps.put: ("rows",),
    steps.put_settings: ("tree",),
    steps.take: ("row",),
    steps.recurrent: ("recurrent",),
    steps.window: ("window",),
}
# Of each choice the all-gathers on several ranks, the reductions there, and the most instructions.
# Sampled, the log probabilities take one more gather than the choice itself, which is one of a
# value and an id, or of candidates; where thresholds are sought, one for the largest logit, one for
# the sum of what top-k leaves, and 8 for each of the two thresholds (see `_largest_below`).
# Bits of the tokens that may come are taken apart in 24 instructions, on several ranks in 49.
_CHOICES = {
    "choose_greedy": (1, 2, 100),
    "choose_short": (2, 36, 1930),
    "choose_any": (20, 140, 4040),
    "choose_short_allowed": (2, 36, 1980),
    "choose_any_allowed": (20, 140, 4090),
}
_EXCHANGE = 800  # to put a row into its slot, for any preset


def trace_engine(
    config: Config,
    *,
    mesh: Mesh = Mesh(),
    rank: int = 0,
    slots: int = 8,
    capacity: int = 4096,
    chunks: Sequence[int] = (32, 64, 96, 128),
    top_logprobs: int = 0,
    dtype: torch.dtype | str = torch.bfloat16,
    kernels: str = "portable",
    stablehlo: bool = False,
) -> Iterator[Graph]:
    """Traces each graph that the warm-up of an engine compiles, for one rank, in its order.

    With tp > 1 they are the graphs of one process per rank. Nothing is computed or compiled.

    Args:
        config: the model; the engine takes pictures where it has a vision tower, whose own graph
            is `trace`'s.
        mesh, rank: whose graphs; those of the ranks are equal.
        slots, capacity, top_logprobs: as in `EngineSettings`.
        chunks: tokens of a prefill step, ascending, each a graph.
        dtype: float32 or bfloat16.
        kernels: as in `trace`.
        stablehlo: write the graphs as StableHLO as well.

    Raises:
        ValueError: the mesh can't split the model, or a chunk is over the capacity.
    """
    sizes = tuple(sorted(set(chunks)))
    if sizes[-1] > capacity:
        raise ValueError(f"a chunk of {sizes[-1]} is over the capacity of {capacity}")
    runtime = Runtime(mesh=mesh, rank=rank, forms="plain", kernels=kernels)
    params = abstract_params(config.text_only(), dtype=dtype, runtime=runtime)
    batch = Batch(
        params,
        slots=slots,
        capacity=capacity,
        sizes=sizes,
        top_logprobs=top_logprobs,
        ends=frozenset(config.eos_token_ids),
    )
    for name, step, values in batch.graphs(pictures=config.vision is not None, limited=True):
        parameters = list(inspect.signature(step).parameters)
        arguments = dict(zip(parameters, values, strict=False))
        lowered = lower_call(step.__wrapped__, arguments, RETURNS[step], stablehlo=stablehlo)
        prefill = name.startswith("prefill")
        alone = prefill or name in ("recurrent", "window")
        yield Graph(
            **vars(lowered),
            phase=f"engine_{name}",
            mesh=mesh,
            rank=rank,
            tokens=arguments["tokens"].shape[1] if prefill else 1,
            capacity=capacity,
            batch=1 if alone else slots,
            dtype=name_of(as_dtype(dtype)),
            config=config,
            kernels=kernels,
            design=_design(config, name, slots),
        )


def _design(config: Config, name: str, slots: int) -> Design:
    """What a graph of an engine of so many slots is made of."""
    if name.startswith("prefill") or name == "decode":
        beside = name != "decode" and slots > 1  # a prefill step decodes the slots
        return model_design(
            config,
            one_token=name == "decode",
            positions=name == "prefill_images",
            lengths=True,
            donates=("row", "rows") if beside else ("rows",),
            splits_logits=True,
            decodes=beside,
        )
    donates: tuple[str, ...] = ("rows", "tree") if name.startswith("put") else ()
    if name not in _CHOICES:
        return Design({}, 0, _EXCHANGE, weights=False, donates=donates, splits_logits=True)
    gathers, reductions, instructions = _CHOICES[name]
    return Design(
        {"all-gather": gathers},
        reductions,
        instructions,
        weights=False,
        donates=("counts",),
        splits_logits=True,
    )


def describe_engine(graphs: Iterable[Graph]) -> dict[str, Any]:
    """Describes an engine's graphs, one after the other, as plain values for JSON; bytes of one
    rank.

    Returns:
        `graphs`: of each its name, rows, tokens, instructions, collectives, bytes that it sends,
        bytes read and written, FLOPs; `steps`: of each way to choose, collectives and bytes sent by
        a step of all slots (a decode and a choice), and what they would be if the decode gathered
        the logits.
    """
    rows: dict[str, dict[str, Any]] = {}
    for graph in graphs:
        rows[graph.phase.removeprefix("engine_")] = _described(graph)
    decode = rows["decode"]
    ranks, slots = graph.mesh.tp, decode["rows"]
    gathered = 4 * slots * graph.config.vocab_size // ranks * (ranks - 1)
    taken = {}
    for name in _CHOICES:
        choice = rows[name]
        taken[name.removeprefix("choose_")] = {
            "collectives": decode["collectives"] + choice["collectives"],
            "bytes_sent": decode["bytes_sent"] + choice["bytes_sent"],
            "gathering_collectives": decode["collectives"] + (ranks > 1),
            "gathering_bytes_sent": decode["bytes_sent"] + gathered,
            "choice_collectives": choice["collectives"],
            "choice_bytes_sent": choice["bytes_sent"],
            "gather_bytes_sent": gathered,
        }
    return {
        "tp": ranks,
        "slots": slots,
        "capacity": graph.capacity,
        "dtype": graph.dtype,
        "graphs": rows,
        "steps": taken,
    }


def _described(graph: Graph) -> dict[str, Any]:
    costs = count_costs(graph)
    kinds = Counter(entry["op"] for entry in costs["collectives"])
    return {
        "rows": graph.batch,
        "tokens": graph.tokens,
        "instructions": sum(costs["histogram"].values()),
        "collectives": sum(kinds.values()),
        "collectives_by_kind": dict(kinds),
        "bytes_sent": round(collective_bytes(costs)),
        "bytes_read": costs["bytes_read"],
        "bytes_written": costs["bytes_written"],
        "temporary_bytes": costs["temporary_bytes"],
        "flops": costs["flops"],
    }


def render_engine(described: dict[str, Any]) -> str:
    """Renders `describe_engine`'s result as Markdown tables."""
    head = ("graph", "rows", "tokens", "instructions", "collectives", "sent", "read", "GFLOP")
    rows = [
        (
            name,
            str(row["rows"]),
            str(row["tokens"]),
            f"{row['instructions']:,}",
            str(row["collectives"]),
            short_bytes(row["bytes_sent"]),
            short_bytes(row["bytes_read"]),
            f"{row['flops'] / 1e9:.1f}",
        )
        for name, row in described["graphs"].items()
    ]
    parts = [
        f"an engine of {described['slots']} slots at tp {described['tp']}, {described['dtype']}, "
        f"capacity {described['capacity']:,}; of each rank:",
        markdown_table(head, rows),
    ]
    if described["tp"] > 1:
        head = ("a step of all slots", "collectives", "sent", "sent to choose", "by a gather")
        rows = [
            (
                name,
                f"{step['collectives']} ({step['gathering_collectives']} with the gather)",
                short_bytes(step["bytes_sent"]),
                short_bytes(step["choice_bytes_sent"]),
                short_bytes(step["gather_bytes_sent"]),
            )
            for name, step in described["steps"].items()
        ]
        parts.append(markdown_table(head, rows))
    return "\n\n".join(parts)
