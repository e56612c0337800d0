"""Compile by torch.compile: TorchDynamo captures a function as one graph, a backend compiles that.

Of `torch.compile(function, backend=…, fullgraph=True, dynamic=False)` only the first call is
needed. It captures the graph, and shows which tensors the graph takes and where each tensor of the
result comes from. From then on the compiled graph is called directly. TorchDynamo's guards, which
would look at hundreds of tensors in every call and might compile again, are not: a signature is all
that a pure function depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException
from torch.utils import _pytree

from . import trees
from .capture import Build, Capture, run_on_fake_tensors
from .devices import device_put
from .donation import check_distinct, consume
from .target import Target
from .trees import picker

# Where a backend's tensors are, if not on the CPU.
_DEVICES = {"openxla": "xla", "neuron": "neuron"}


def device_of(backend: str) -> str:
    """Return the kind of device that a backend of torch.compile wants tensors on.

    Raises:
        ValueError: there is none of this name.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise ValueError(
            f"no backend {backend!r}: torch.compile has {', '.join(known)} here, and without one "
            "XLA compiles"
        )
    return _DEVICES.get(backend, "cpu")


class TorchCompile:
    """A backend of torch.compile as a `backends.Backend`.

    Args:
        name: one that `torch.compiler.list_backends` knows, those for debugging included.

    Raises:
        ValueError: there is none of this name.
    """

    def __init__(self, name: str):
        self._name = name
        self._device = device_of(name)

    def placements(
        self, leaves: list[torch.Tensor], frozen: trees.FrozenTrees
    ) -> list[tuple | None]:
        """Return the strides of frozen trees; all other tensors are made contiguous."""
        for _, flat in frozen:
            if flat.strides is None:
                flat.strides = tuple(leaf.stride() for leaf in flat.leaves)
        return [flat.strides for _, flat in frozen]

    def compile(
        self,
        target: Target,
        signature: str,
        values: tuple,
        leaves: list[torch.Tensor],
        frozen: trees.FrozenTrees,
        report: Callable[[str], None],
    ) -> CompiledGraph:
        """Compile as `Backend.compile` does."""

        def build(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
            report("compile")
            return torch._dynamo.lookup_backend(self._name)(graph, inputs)

        report("trace")
        capture = self._capture(target, values, leaves, frozen, build)
        graph = CompiledGraph(target, signature, values, leaves, frozen, capture)
        if self._device == "xla":
            graph.run_on_zeros(leaves)
        return graph

    def lower(
        self,
        target: Target,
        values: tuple,
        leaves: list[torch.Tensor],
        frozen: trees.FrozenTrees,
    ) -> str:
        """Return the graph that TorchDynamo captures, as Python code."""
        return self._capture(target, values, leaves, frozen, lambda graph, inputs: graph).text

    def _capture(
        self,
        target: Target,
        values: tuple,
        leaves: list[torch.Tensor],
        frozen: trees.FrozenTrees,
        build: Build,
    ) -> Capture:
        where = f"backend {self._name!r} runs on {self._device!r}"
        target.check_tensors(values, self._device, f"{where}: use device_put")
        donated, kept = target.split_by_donation(values, trees.of_frozen(frozen))
        leaves = _contiguous(leaves, donated + kept)
        with torch.inference_mode(False), torch.no_grad():
            run_on_fake_tensors(target, values, leaves, self._device)
            try:
                return Capture(target, values, leaves, build)
            except BackendCompilerFailed as error:
                cause = error.inner_exception
                raise RuntimeError(
                    f"{target.name}: backend {self._name!r} can't compile it: "
                    f"{type(cause).__name__}: {_first_line(cause)}"
                ) from error
            except TorchDynamoException as error:
                raise RuntimeError(
                    f"{target.name}: torch.compile can't take it as one graph: {_first_line(error)}"
                ) from error


class CompiledGraph:
    """A graph that a backend of torch.compile has compiled, as a `backends.Graph`.

    A result shares memory with nothing that a caller has, but with frozen trees, which never
    change. So a donated tensor can give up its memory: that is free, unless a result, or an alias
    that the caller has made, still has it.
    """

    def __init__(
        self,
        target: Target,
        signature: str,
        values: tuple,
        leaves: list[torch.Tensor],
        frozen: trees.FrozenTrees,
        capture: Capture,
    ):
        self.signature = signature
        self.needs_no_grad = any(leaf.requires_grad for leaf in leaves)
        self._name = target.name
        of_frozen = trees.of_frozen(frozen)
        donated, kept = target.split_by_donation(values, of_frozen)
        self._loose = donated + kept
        self._donated, self._kept = picker(donated), picker(kept)
        self._run = capture.run
        self._inputs = picker(capture.input_order)
        self._constants = capture.constants
        self._statics = capture.statics
        self._results = picker(capture.result_order)
        self._shared = [index in of_frozen for index in capture.result_order]
        self._spec = capture.spec

    def run_on_zeros(self, leaves: list[torch.Tensor]) -> None:
        """Run the graph once, with zeros for all but frozen trees.

        torch-xla compiles at the first call, and takes inputs that then share data, as results that
        happen to be equal may, for one and the same in all later calls.
        """
        if self._run is None:
            return
        given = list(leaves)
        for index in self._loose:
            zeros = torch.zeros(leaves[index].shape, dtype=leaves[index].dtype)
            given[index] = device_put(zeros, "xla")
        with torch.no_grad():
            self._run(*self._inputs(given + self._constants))

    def __call__(self, leaves: list[torch.Tensor], frozen: trees.FrozenTrees) -> Any:
        donated, kept = self._donated(leaves), self._kept(leaves)
        if donated:
            check_distinct(self._name, donated, list(map(_memory, donated + kept)), frozen)
        with torch.no_grad():
            given = _contiguous(leaves, self._loose) + self._constants
            outputs = () if self._run is None else self._run(*self._inputs(given))
            results = self._results([*given, *self._statics, *outputs])
            taken = {_memory(tensor) for tensor in (*kept, *self._constants)}
            for _, flat in frozen:
                if flat.memory is None:
                    flat.memory = frozenset(map(_memory, flat.leaves))
                taken |= flat.memory
            results = [
                result if shared else _as_value(result, taken)
                for result, shared in zip(results, self._shared, strict=True)
            ]
            for tensor in donated:
                tensor.data = tensor.new_empty(0)
        consume(donated)
        return _pytree.tree_unflatten(results, self._spec)


def _contiguous(leaves: list[torch.Tensor], loose: Sequence[int]) -> list[torch.Tensor]:
    """Return the leaves, those at the indices `loose` contiguous, as graphs are compiled for."""
    leaves = list(leaves)
    for index in loose:
        if not leaves[index].is_contiguous():
            leaves[index] = leaves[index].contiguous()
    return leaves


def _as_value(result: Any, taken: set[int]) -> Any:
    """Return a leaf of the result, contiguous, in memory that is not taken, and take that."""
    if not isinstance(result, torch.Tensor):
        return result
    if not result.is_contiguous():
        return result.contiguous()
    memory = _memory(result)
    if memory in taken:
        return result.clone()
    taken.add(memory)
    return result.detach()  # of an argument that is consumed, another tensor with its memory


def _memory(tensor: torch.Tensor) -> int:
    """Return what identifies the memory that a tensor is a view of."""
    return tensor.untyped_storage()._cdata


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
