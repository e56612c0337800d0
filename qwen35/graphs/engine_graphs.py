"""The graphs that an engine runs, traced without weights, and what its steps exchange and cost."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

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
from .design import Design, launch_design, model_design
from .export import Graph
from .launches import lower_launches
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


class EngineShapes(TypedDict, total=False):
    """What an engine's graphs are traced with; each is explained at `trace_engine`."""

    mesh: Mesh
    rank: int
    slots: int
    capacity: int
    chunks: Sequence[int]
    top_logprobs: int
    dtype: torch.dtype | str
    kernels: str


def trace_engine(
    config: Config, *, stablehlo: bool = False, **shapes: Unpack[EngineShapes]
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
    for step in _steps(config, **shapes):
        yield step.whole(stablehlo)


def trace_engine_launches(
    config: Config,
    *,
    segments: int | str,
    stablehlo: bool = False,
    **shapes: Unpack[EngineShapes],
) -> Iterator[tuple[Graph, list[Graph]]]:
    """Traces the graphs of `trace_engine`, and those that `Runtime(segments=…)` cuts them into.

    Yields:
        A graph, and what it is cut into as from `export.trace_launches`: nothing where it has no
        layers, and only such a graph has its StableHLO.

    Raises:
        ValueError: as `trace_engine`, or a step can't be cut so.
    """
    for step in _steps(config, segments=segments, **shapes):
        if step.runs_layers:
            yield step.whole(False), step.launches(stablehlo)
        else:
            yield step.whole(stablehlo), []


class _Step(NamedTuple):
    """A step of an engine, its arguments as trees of meta tensors, and what `Graph` says of it."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    returns: tuple[str, ...]
    slots: int
    facts: dict[str, Any]

    @property
    def runs_layers(self) -> bool:
        return self.name.startswith("prefill") or self.name == "decode"

    @property
    def trees(self) -> tuple[str, ...]:
        """The arguments that a step with layers replaces: what it reads into, what it decodes."""
        beside = self.name != "decode" and self.slots > 1  # a prefill step decodes the slots
        return ("row", "rows") if beside else ("rows",)

    @property
    def given(self) -> dict[str, bool]:
        """What tells a step with layers from others of the model."""
        return {"one_token": self.name == "decode", "positions": self.name == "prefill_images"}

    def whole(self, stablehlo: bool) -> Graph:
        """Traces it as one graph."""
        made = lower_call(self.function, self.arguments, self.returns, stablehlo=stablehlo)
        facts = self.facts | {"phase": f"engine_{self.name}", "design": self.design()}
        return Graph(**vars(made), **facts)

    def launches(self, stablehlo: bool) -> list[Graph]:
        """Traces it as the graphs that it is cut into."""
        states = [f"{tree}.state" for tree in self.trees]
        how = self.given | {"states": states, "engine": True}
        graphs = []
        made = lower_launches(self.function, self.arguments, self.returns, stablehlo=stablehlo)
        for name, graph in made:
            design = launch_design(self.facts["config"], name, graph.layers, **how)
            facts = self.facts | {"phase": f"engine_{self.name}_{name}", "design": design}
            graphs.append(Graph(**vars(graph), **facts))
        return graphs

    def design(self) -> Design:
        """What the graph is made of."""
        config = self.facts["config"]
        if self.runs_layers:
            return model_design(
                config,
                **self.given,
                lengths=True,
                donates=self.trees,
                splits_logits=True,
                decodes=len(self.trees) > 1,
            )
        donates: tuple[str, ...] = ("rows", "tree") if self.name.startswith("put") else ()
        if self.name not in _CHOICES:
            return Design({}, 0, _EXCHANGE, weights=False, donates=donates, splits_logits=True)
        gathers, reductions, instructions = _CHOICES[self.name]
        return Design(
            {"all-gather": gathers},
            reductions,
            instructions,
            weights=False,
            donates=("counts",),
            splits_logits=True,
        )


def _steps(
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
    segments: int | str = 1,
) -> Iterator[_Step]:
    """Lists the steps of an engine; arguments are those of `trace_engine`, with the `segments` of
    its `Runtime`."""
    sizes = tuple(sorted(set(chunks)))
    if sizes[-1] > capacity:
        raise ValueError(f"a chunk of {sizes[-1]} is over the capacity of {capacity}")
    runtime = Runtime(mesh=mesh, rank=rank, forms="plain", kernels=kernels, segments=segments)
    params = abstract_params(config.text_only(), dtype=dtype, runtime=runtime)
    batch = Batch(
        params,
        slots=slots,
        capacity=capacity,
        sizes=sizes,
        top_logprobs=top_logprobs,
        ends=frozenset(config.eos_token_ids),
    )
    traced = {"mesh": mesh, "rank": rank, "capacity": capacity, "config": config}
    traced |= {"kernels": kernels, "dtype": name_of(as_dtype(dtype))}
    for name, step, values in batch.graphs(pictures=config.vision is not None, limited=True):
        parameters = list(inspect.signature(step).parameters)
        arguments = dict(zip(parameters, values, strict=False))
        prefill = name.startswith("prefill")
        alone = prefill or name in ("recurrent", "window")
        facts = traced | {
            "tokens": arguments["tokens"].shape[1] if prefill else 1,
            "batch": 1 if alone else slots,
        }
        yield _Step(name, step.__wrapped__, arguments, RETURNS[step], slots, facts)


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
