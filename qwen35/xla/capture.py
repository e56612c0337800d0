"""Have TorchDynamo capture a function as one graph: what `dynamo` does once per signature."""

from __future__ import annotations

import builtins
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils import _pytree

from . import trees
from .target import Target
from .turns import tracing_here

# Compiles a captured graph, for inputs like these.
Build = Callable[[torch.fx.GraphModule, list[torch.Tensor]], Callable[..., Sequence[torch.Tensor]]]


class Capture:
    """One run of TorchDynamo over a function, and the graph that it found, compiled by `build`.

    Attributes:
        run: the compiled graph, None if there is nothing to compute.
        text: the graph as Python code.
        constants: tensors that the graph takes, or the result has, besides the leaves.
        input_order: for each input of the graph its index in leaves + constants.
        spec, statics: structure of the result, and its leaves that are not tensors.
        result_order: for each leaf of the result its index in leaves + constants + statics +
            what the graph computes.
    """

    def __init__(self, target: Target, values: tuple, leaves: list[torch.Tensor], build: Build):
        self.run: Callable[..., Sequence[torch.Tensor]] | None = None
        self.text = ""
        self.constants: list[torch.Tensor] = []
        self.input_order: list[int] = []
        self._build = build
        self._outputs: list[Any] = []
        # Each leaf is a tensor of its own, also where the same one was passed twice.
        stand_ins = [leaf.detach() for leaf in leaves]
        self._place = {id(stand_in): index for index, stand_in in enumerate(stand_ins)}
        args, kwargs = _arguments(target, values, stand_ins)
        compiled = torch.compile(
            _with_code_of_its_own(target.function),
            backend=self._take,
            fullgraph=True,
            dynamic=False,
        )
        self._arrange(compiled(args, kwargs), len(leaves))

    def _take(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        """Have the graph compiled; instead of it, TorchDynamo gets one that computes nothing."""
        self.text = graph.print_readable(print_output=False)
        [results] = graph.graph.output_node().args
        self._outputs = [
            result.meta["example_value"] if isinstance(result, torch.fx.Node) else result
            for result in results
        ]
        self.input_order = [self._index(tensor) for tensor in inputs]
        self.run = self._build(graph, inputs)
        return lambda *inputs: self._outputs

    def _index(self, tensor: torch.Tensor) -> int:
        """Return a tensor's index in leaves + constants, to which it is added if it is no leaf."""
        index = self._place.get(id(tensor))
        if index is None:
            index = self._place[id(tensor)] = len(self._place)
            # What it was taken from may be modified in place later.
            self.constants.append(tensor.detach().clone())
        return index

    def _arrange(self, result: Any, leaves: int) -> None:
        """Decide for each leaf of the result where it comes from."""
        flat, self.spec = _pytree.tree_flatten(result)
        computed = {id(output): number for number, output in enumerate(self._outputs)}
        self.statics: list[Any] = []
        order: list[tuple[str, int]] = []
        for leaf in flat:
            if not isinstance(leaf, torch.Tensor):
                order.append(("static", len(self.statics)))
                self.statics.append(leaf)
            elif id(leaf) in computed:
                order.append(("output", computed[id(leaf)]))
            else:
                order.append(("given", self._index(leaf)))
        offset = {"given": 0, "static": leaves + len(self.constants)}
        offset["output"] = offset["static"] + len(self.statics)
        self.result_order = [offset[kind] + index for kind, index in order]


def run_on_fake_tensors(
    target: Target, values: tuple, leaves: list[torch.Tensor], device: str
) -> None:
    """Run a function on tensors without values: what it refuses, it says itself, and in its own
    words, which TorchDynamo would bury.

    Args:
        device: the kind of device that results have to be on.

    Raises:
        RuntimeError: it reads a tensor's value.
        ValueError: it modifies an argument, or returns a tensor on another device.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [
            torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
            for leaf in leaves
        ]
    args, kwargs = _arguments(target, values, fakes)
    versions = [fake._version for fake in fakes]
    tracing_here.active = True
    try:
        with mode:
            result = target.function(*args, **kwargs)
    except (DataDependentOutputException, DynamicOutputShapeException):
        target.refuse_reading()
    finally:
        tracing_here.active = False
    tensors = ((path, x) for path, x in target.named_leaves(values) if isinstance(x, torch.Tensor))
    for (path, _), fake, version in zip(tensors, fakes, versions, strict=True):
        if fake._version != version:
            target.refuse_modified(path)
    for tensor in trees.tensors(result):
        if tensor.device.type != device:
            target.refuse_result(tensor.device, device)


def _arguments(
    target: Target, values: tuple, tensors: Sequence[torch.Tensor]
) -> tuple[tuple, dict[str, Any]]:
    """Return what the function is called with for these values, with other tensors in them."""
    remaining = iter(tensors)
    mapped = trees.map_tensors(lambda _: next(remaining), values)
    arguments = dict(zip(target.parameters, mapped, strict=True))
    # typeshed asks for an OrderedDict; Python's own `bind` gives a dict.
    bound = inspect.BoundArguments(target.signature, arguments)  # type: ignore[arg-type]
    return bound.args, bound.kwargs


def _with_code_of_its_own(function: Callable) -> Callable:
    """Return a function that calls `function`. Its code object and its globals are its own:
    TorchDynamo keeps there what it compiled, and gives up on a code that it compiled for often."""

    def call(args: tuple, kwargs: dict[str, Any]) -> Any:
        if not torch.compiler.is_compiling():
            raise RuntimeError("torch.compile is off: by TORCH_COMPILE_DISABLE, or by its stance")
        return function(*args, **kwargs)

    names = {"__builtins__": builtins, "torch": torch}
    return types.FunctionType(call.__code__.replace(), names, "call", None, call.__closure__)
