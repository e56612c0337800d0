"""Traces a step on tensors without data, and gives its graph with names for all that it takes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..model.config import Config, VisionConfig
from ..sharding.mesh import Mesh
from ..xla import private, trees
from ..xla.devices import numbers_as_constants
from .design import Design
from .hlo import Module
from .lint import Case

_LAYER = re.compile(r"^params\.(?:layers|blocks)\[(\d+)\]")


class Slot(NamedTuple):
    """What a graph takes or returns: where it stands in the step's trees, and its type."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, path: str, tensor: torch.Tensor) -> Slot:
        """Describes a tensor."""
        return cls(path, tuple(tensor.shape), tensor.dtype)

    @property
    def bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def described(self) -> dict[str, Any]:
        """Returns it as plain values for JSON."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"path": self.path, "shape": list(self.shape), "dtype": dtype}


@dataclass(frozen=True)
class Lowered:
    """The graph of a step.

    Attributes:
        text, proto: the HLO module; the proto has the donated buffers' aliases.
        stablehlo: the module as a portable artifact of StableHLO, which has no aliases, if it was
            asked for.
        inputs: what the graph takes, in its order, e.g. "params.layers[0].in_proj".
        outputs: what it returns, in its order, e.g. "logits", "state.layers[0].recurrent".
        captured: the values of the inputs "captured[0]" and so on, which torch-xla adds, on the
            CPU.
        paths: of all tensors that the step was given, whether or not the graph takes them.
        donated: (argument, output) pairs: the output takes the donated argument's memory.
    """

    text: str
    proto: bytes
    stablehlo: bytes | None
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    captured: tuple[torch.Tensor, ...]
    paths: tuple[str, ...]
    donated: tuple[tuple[int, int], ...]

    @property
    def arguments(self) -> tuple[str, ...]:
        """Returns the path of each argument of the graph."""
        return tuple(slot.path for slot in self.inputs)

    @property
    def layers(self) -> list[int]:
        """Returns the numbers of the layers, or of the tower's blocks, that the step was given."""
        return sorted({int(at) for path in self.paths for at in _LAYER.findall(path)})

    @property
    def signature(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the graph's parameters and outputs, in its order, as plain values for JSON.

        An output's `aliases` is the index of the parameter whose memory it takes, or None.
        """
        taken = {output: argument for argument, output in self.donated}
        return {
            "parameters": [
                {"index": index, **slot.described()} for index, slot in enumerate(self.inputs)
            ],
            "outputs": [
                {"index": index, **slot.described(), "aliases": taken.get(index)}
                for index, slot in enumerate(self.outputs)
            ],
        }

    @functools.cached_property
    def module(self) -> Module:
        """The parsed text."""
        return Module(self.text)

    def same_graph(self, other: Lowered) -> bool:
        """Tells whether another has the same graph, whatever the paths of what it takes and
        gives."""
        if (self.text, self.donated) != (other.text, other.donated):
            return False
        pairs = zip(self.captured, other.captured, strict=True)
        return all(torch.equal(ours, theirs) for ours, theirs in pairs)

    def case(
        self,
        config: Config | VisionConfig,
        mesh: Mesh,
        design: Design | None = None,
        kernels: str = "portable",
    ) -> Case:
        """Returns what `lint` checks; `design` is that of a step of the model."""
        graph = (self.module, self.arguments, self.paths, self.donated)
        return Case(*graph, config, mesh, design, kernels)


def lower(
    step: Callable[..., tuple[Any, Any]],
    params: Any,
    state: Any,
    tokens: Any,
    *,
    stablehlo: bool = False,
    **more: Any,
) -> Lowered:
    """Traces `step(params, state, tokens, **more) -> (logits, state)` on trees of meta tensors.

    The state is donated: each of its tensors gives its memory to the one that replaces it.
    """

    def call(params: Any, state: Any, tokens: Any, *rest: Any) -> tuple[Any, Any]:
        return step(params, state, tokens, **dict(zip(more, rest, strict=True)))

    arguments = {"params": params, "state": state, "tokens": tokens} | more
    return lower_call(call, arguments, ("logits", "state"), stablehlo=stablehlo)


def lower_call(
    step: Callable[..., Any],
    arguments: Mapping[str, Any],
    returns: Sequence[str],
    *,
    stablehlo: bool = False,
) -> Lowered:
    """Traces `step(**arguments)` on trees of meta tensors.

    Args:
        step: a pure function.
        arguments: in the order of its parameters.
        returns: a name for each value that it returns. One that has an argument's name replaces it:
            each tensor of the argument gives its memory to the one in its place.
        stablehlo: write the graph as StableHLO as well.
    """
    traced = trees.map_tensors(placeholder, dict(arguments))
    with torch.no_grad(), numbers_as_constants():
        result = step(*traced.values())
    results = dict(zip(returns, result if len(returns) > 1 else (result,), strict=True))
    return lowered(traced, results, stablehlo=stablehlo)


def lowered(
    arguments: Mapping[str, Any],
    results: Mapping[str, Any],
    *,
    replaces: Collection[str] | None = None,
    stablehlo: bool = False,
) -> Lowered:
    """Returns the graph of results that were traced on arguments, trees by name.

    Args:
        replaces: the trees whose results take the memory of the argument of their path; None: all
            that are arguments.
        stablehlo: write the graph as StableHLO as well.
    """
    gone = set(map(_tree_of, results)) & arguments.keys() if replaces is None else set(replaces)
    with torch.no_grad(), numbers_as_constants():
        # A value that passes through unchanged is an output of its own in the graph.
        results = {
            name: trees.map_tensors(_computed, tree) if _tree_of(name) in gone else tree
            for name, tree in results.items()
        }
    outputs = [pair for name, tree in results.items() for pair in named_tensors(tree, name)]
    tensors = [tensor for _, tensor in outputs]
    leaves = [pair for name, tree in arguments.items() for pair in named_tensors(tree, name)]
    handles = private._get_tensors_handle([leaf for _, leaf in leaves])
    slot_of = {handle: Slot.of(*leaf) for handle, leaf in zip(handles, leaves, strict=True)}
    _, data = private._get_tensors_xla_device_data_node(tensors)
    inputs, captured = [], []
    for handle, tensor in zip(private._get_tensors_handle(list(data)), data, strict=True):
        if handle not in slot_of:
            slot_of[handle] = Slot.of(f"captured[{len(captured)}]", tensor)
            captured.append(tensor.cpu())
        inputs.append(slot_of[handle])
    output = {path: index for index, (path, _) in enumerate(outputs)}
    donated = tuple(
        (number, output[slot.path])
        for number, slot in enumerate(inputs)
        if slot.path in output and _tree_of(slot.path) in gone
    )
    return Lowered(
        text=private._get_xla_tensors_hlo(tensors),
        proto=private._get_xla_tensors_hlo_proto(tensors) + alias_field(donated),
        stablehlo=_stablehlo(tensors) if stablehlo else None,
        inputs=tuple(inputs),
        outputs=tuple(Slot.of(*pair) for pair in outputs),
        captured=tuple(captured),
        paths=tuple(path for path, _ in leaves),
        donated=donated,
    )


def named_tensors(tree: Any, name: str) -> list[tuple[str, torch.Tensor]]:
    """Returns the tensors of a tree of this name, each with its path, in the tree's order."""
    leaves = trees.named_leaves(tree, name)
    return [(path, leaf) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]


def placeholder(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor of XLA's of the same shape and dtype, without data."""
    if tensor.dtype == torch.float8_e4m3fn:  # which the public function does not know
        shape = private.mkshape("f8e4m3fn", tuple(tensor.shape))
        return private._xla_create_placeholder_tensor(shape.shape)
    return private.create_placeholder_tensor(tensor.shape, tensor.dtype)


def _computed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.permute(tuple(range(tensor.dim())))


def _tree_of(path: str) -> str:
    """The name of the tree that a path is in."""
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def _stablehlo(tensors: list[torch.Tensor]) -> bytes:
    return private._get_stablehlo(tensors, str(tensors[0].device), [], True)  # as bytecode


def alias_field(donated: tuple[tuple[int, int], ...]) -> bytes:
    """Encodes `input_output_alias` of an HloModuleProto (field 8), to append to a serialised one.

    torch-xla adds it only while it compiles. Each entry (field 1 of the alias message) has the
    output's index (1), the parameter's number (2) and a kind (4): 1 is "may alias", as there.
    """

    def message(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2]) + _varint(len(content)) + content

    entries = b""
    for argument, output in donated:
        index = message(1, _varint(output))
        entries += message(1, index + bytes([2 << 3]) + _varint(argument) + bytes([4 << 3, 1]))
    return message(8, entries)


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 0x7F:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])
