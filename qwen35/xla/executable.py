"""Run graphs that torch-xla has compiled; `staged` compiles them."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree

from . import private, trees
from .devices import check_alive, next_seed, on_xla_cpu, run_pending, run_pending_of
from .donation import check_distinct, consume
from .environment import xla
from .target import Target
from .tracing import Trace
from .trees import picker


def lower(
    target: Target,
    values: tuple,
    leaves: list[torch.Tensor],
    frozen: trees.FrozenTrees,
) -> str:
    """Trace `target` on symbolic `values` and return the graph as HLO text."""
    with Trace(target, values, leaves, frozen) as trace:
        return private._get_xla_tensors_hlo(trace.outputs)


def placements(leaves: list[torch.Tensor], frozen: trees.FrozenTrees) -> list[str]:
    """Return what tells how the leaves are split over devices; frozen trees are asked once.

    It is part of the key of a graph: one that is compiled for whole tensors can't take split ones.
    """
    if not xla().runtime.is_spmd():
        return []
    for _, flat in frozen:
        if flat.sharding is None:
            flat.sharding = " ".join(private._get_xla_sharding_specs(flat.leaves))
    loose, end = [], 0
    for start, flat in frozen:
        loose += leaves[end:start]
        end = start + len(flat.leaves)
    loose = [leaf for leaf in loose + leaves[end:] if leaf.is_xla]
    return [*(flat.sharding for _, flat in frozen), *private._get_xla_sharding_specs(loose)]


@functools.cache
def initialize_cache(directory: str) -> None:
    """Let torch-xla keep compiled graphs in `directory`, unless the platform is the CPU."""
    if on_xla_cpu():
        return
    if private._xla_computation_cache_is_initialized():
        raise RuntimeError(
            f"cache_dir={directory!r} comes too late: this process has compiled already, or "
            "uses another cache directory"
        )
    xla().runtime.initialize_cache(directory)


class Executable:
    """A compiled graph and how to get from a call's leaves to its inputs and to the result.

    Attributes:
        constants: tensors that it takes besides the leaves.
        statics: leaves of the result that are no tensors.
        shapes: of its outputs.
    """

    __slots__ = (
        "_donated",
        "_hash",
        "_inputs",
        "_kept",
        "_name",
        "_results",
        "_retired",
        "_seed",
        "_spec",
        "constants",
        "needs_no_grad",
        "shapes",
        "signature",
        "statics",
    )

    def __init__(self, name: str, signature: str, trace: Trace, graph_hash: bytes | None):
        self.signature = signature
        self.constants = trace.constants
        self.statics = trace.statics
        self.shapes = [Shape.of(output) for output in trace.outputs]
        self.needs_no_grad = trace.needs_no_grad
        self._name = name
        self._hash = graph_hash
        self._inputs = picker(trace.input_order)
        self._seed = trace.seed_position
        self._donated = picker(trace.donated)
        self._kept = picker(trace.kept)
        self._results = picker(trace.result_order)
        self._retired: deque[tuple[torch.Tensor, ...]] = deque(maxlen=2)
        self._spec = trace.spec

    def __call__(self, leaves: list[torch.Tensor], frozen: trees.FrozenTrees) -> Any:
        donated = self._donated(leaves)
        make_ready(self._name, donated, self._kept(leaves), frozen)
        outputs = self.launch(self.inputs(leaves, self.constants))
        consume(donated)
        # Releasing a donated tensor blocks, with the interpreter's lock held, until the graph
        # that consumes it has run. The next call may come before that, but the one after it waits
        # for something anyway.
        self._retired.append(donated)
        return self.arranged(self.results(leaves, self.statics, outputs))

    def inputs(self, leaves: Sequence, constants: Sequence) -> tuple:
        """Pick the graph's inputs of what stands for the leaves and for its constants."""
        return self._inputs([*leaves, *constants])

    def launch(self, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """Run the graph on its inputs without waiting; return its outputs."""
        if self._hash is None:
            return []
        if self._seed is not None:
            inputs = (*inputs[: self._seed], next_seed(), *inputs[self._seed + 1 :])
        outputs = private._run_cached_graph(self._hash, inputs)
        return outputs[: len(self.shapes)]  # without the salt of `Trace.compile`

    def results(
        self, leaves: Sequence, statics: Sequence, outputs: Sequence, passed: Sequence = ()
    ) -> list:
        """Pick the leaves of the result of what stands for the arguments' leaves, its static
        values, the graph's outputs, and what is passed (`chains.Passed`)."""
        return list(self._results([*leaves, *statics, *outputs, *passed]))

    def arranged(self, results: list) -> Any:
        """Return the result that has these leaves."""
        return _pytree.tree_unflatten(results, self._spec)


class Shape(NamedTuple):
    """A tensor's shape and dtype, and how it is split over devices, None if it is not."""

    shape: torch.Size
    dtype: torch.dtype
    split: Any = None

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Shape:
        """Return that of a symbolic tensor."""
        split = xla().runtime.is_spmd() and private._get_xla_sharding_spec(tensor)
        sharding = private._get_xla_op_sharding(tensor) if split else None
        return cls(tensor.shape, tensor.dtype, sharding)


def make_ready(
    name: str,
    donated: tuple[torch.Tensor, ...],
    kept: tuple[torch.Tensor, ...],
    frozen: trees.FrozenTrees,
) -> None:
    """Compute what a call's arguments still wait for; refuse what can't be run or donated.

    Args:
        name: of the function that is called.
        donated, kept: its tensors outside frozen trees.
    """
    loose = donated + kept
    if donated:
        run_pending()  # what is still to be computed from a donated tensor needs it now
    else:
        run_pending_of(loose)
    for _, flat in frozen:
        if not flat.ready:
            run_pending_of(flat.leaves)
            check_alive(name, flat.leaves)
            flat.ready = True
    check_alive(name, loose)
    if donated:
        check_distinct(name, donated, private._get_tensors_handle(loose), frozen)
