"""Traces the graph that a rank runs, without weights, and reports on it."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from ..checks.choices import EXPORTED, FP8
from ..files.materialize import abstract_params
from ..forms import halved, is_special
from ..model.config import Config, VisionConfig
from ..model.decoder import decode, prefill
from ..model.params import Runtime, VisionParams, as_dtype
from ..model.state import init_state
from ..sharding.mesh import Mesh
from ..vision.frames import Frames, groups
from ..vision.tower import tower
from ..xla import private, trees
from ..xla.devices import numbers_as_constants
from .design import Design
from .hlo import Module
from .lint import Case, lint

PHASES = ("prefill", "prefill_images", "decode", "vision")


class Slot(NamedTuple):
    """What a graph takes or returns: where it stands in the step's trees, and its type."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, path: str, tensor: torch.Tensor) -> Slot:
        """Describes a tensor."""
        return cls(path, tuple(tensor.shape), tensor.dtype)

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

    def case(self, config: Config | VisionConfig, mesh: Mesh, design: Design | None = None) -> Case:
        """Returns what `lint` checks; `design` is that of a step of the model."""
        return Case(self.module, self.arguments, self.paths, self.donated, config, mesh, design)


@dataclass(frozen=True)
class Graph(Lowered):
    """The graph of a rank, and what was traced: `tokens` per row of one step (1 in decode; of the
    vision tower, those of a frame, padding included), `batch` rows of this rank, or frames.

    `design` is what it should be; None is that of a step of the model by itself.
    """

    phase: str
    mesh: Mesh
    rank: int
    tokens: int
    capacity: int
    batch: int
    dtype: str
    config: Config
    design: Design | None = None

    def lint(self) -> list[str]:
        """Returns the rules of `qwen35.graphs.lint` that the graph breaks."""
        config = self.config.vision if self.phase == "vision" else self.config
        return lint(self.case(config, self.mesh, self.design))


def trace(
    config: Config,
    phase: str,
    *,
    mesh: Mesh = Mesh(),
    rank: int = 0,
    tokens: int = 128,
    capacity: int = 4096,
    batch: int = 1,
    dtype: torch.dtype | str = torch.bfloat16,
    weights: str | None = None,
    head: str | None = None,
    fp8: str = "e4m3",
    stablehlo: bool = False,
) -> Graph:
    """Traces a step of the model for one rank, as `qwen35.jit` would, on tensors without data.

    With tp > 1 it is the graph of one process per rank. Nothing is computed or compiled. The
    state is donated.

    Args:
        config: the model; a step of the text model does not take the vision tower.
        phase: "prefill", "prefill_images" (with `embeds` and `positions`), "decode" or "vision",
            the tower on frames of one size.
        mesh, rank: which rank's graph; the ranks' graphs are equal, rank is data.
        tokens: of each row in one prefill step, or of each frame after merging.
        capacity: tokens that the KV cache holds.
        batch: rows, or frames, of this rank.
        dtype: float32 or bfloat16.
        weights, head: those of `load`, "int8" or "fp8", or the published "fp8_blocks": their
            scales, one per output or for each block of 128 x 128, multiply products, so that the
            graph has no dense copy of a weight.
        fp8: of FP8 weights, "e4m3" is what Trn1, Trn2 and Trn3 multiply, up to 240 (see
            `forms.halved`), "e4m3fn" what files hold, up to 448, which Trn3 alone does.
        stablehlo: write the graph as StableHLO as well.

    Raises:
        ValueError: an argument is out of range, the model has no vision tower for that phase, or
            the mesh can't split it.
    """
    if phase not in PHASES:
        raise ValueError(f"phase must be one of {PHASES}, not {phase!r}")
    for kind in (weights, head):
        if kind not in (None, "dense", *EXPORTED):
            raise ValueError(f"a graph holds weights of {', '.join(EXPORTED)}, not {kind!r}")
    if fp8 not in FP8:
        raise ValueError(f"fp8 must be one of {FP8}, not {fp8!r}")
    tokens = 1 if phase == "decode" else tokens
    if not 1 <= tokens <= capacity:
        raise ValueError(f"tokens must be from 1 to the capacity of {capacity}, not {tokens}")
    runtime = Runtime(mesh=mesh, rank=rank, forms="plain")
    traced = {"phase": phase, "mesh": mesh, "rank": rank, "capacity": capacity, "batch": batch}
    traced |= {"config": config, "dtype": str(as_dtype(dtype)).removeprefix("torch.")}
    if phase == "vision":
        if config.vision is None:
            raise ValueError("the model has no vision tower to trace")
        vision = abstract_params(config, dtype=dtype, runtime=runtime).vision
        frames = _abstract_frames(vision, batch, tokens)
        lowered = lower(
            lambda vision, state, frames: (tower(vision, frames), state),
            *(vision, (), frames),
            stablehlo=stablehlo,
        )
        padded = frames.patches.shape[1] // config.vision.merge_factor
        return Graph(**vars(lowered), **traced, tokens=padded)
    made = {"weights": weights, "head": head}
    params = abstract_params(config.text_only(), dtype=dtype, runtime=runtime, **made)
    if fp8 == "e4m3":
        params = pytree.tree_map(halved, params, is_leaf=is_special)
    shape = (batch,) if phase == "decode" else (batch, tokens)
    ids = torch.empty(shape, dtype=torch.int32, device="meta")
    more = {}
    if phase == "prefill_images":
        size = (batch, tokens, config.hidden_size)
        more["embeds"] = torch.empty(size, dtype=params.dtype, device="meta")
        more["positions"] = ids.expand(3, batch, tokens)
    step = decode if phase == "decode" else prefill
    state = init_state(params, batch, capacity)
    lowered = lower(step, params, state, ids, stablehlo=stablehlo, **more)
    return Graph(**vars(lowered), **traced, tokens=tokens)


def _abstract_frames(vision: VisionParams, count: int, tokens: int) -> Frames:
    """Makes `count` frames of that many tokens, without data."""
    config = vision.config
    size = (1, config.spatial_merge_size, config.spatial_merge_size * tokens)
    patches = torch.zeros(tokens * config.merge_factor, config.patch_dim, dtype=vision.dtype)
    [frame] = groups(config, patches, [size])
    frames = frame._replace(patches=frame.patches.expand(count, -1, -1))
    return trees.map_tensors(lambda tensor: tensor.to("meta"), frames)


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
    traced = trees.map_tensors(_placeholder, dict(arguments))
    with torch.no_grad(), numbers_as_constants():
        result = step(*traced.values())
        results = dict(zip(returns, result if len(returns) > 1 else (result,), strict=True))
        for name in results.keys() & traced.keys():
            # A value that passes through unchanged is an output of its own in the graph.
            results[name] = trees.map_tensors(
                lambda t: t.permute(tuple(range(t.dim()))), results[name]
            )
    outputs = [pair for name, tree in results.items() for pair in _named_tensors(tree, name)]
    tensors = [tensor for _, tensor in outputs]
    leaves = [pair for name, tree in traced.items() for pair in _named_tensors(tree, name)]
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
        (number, output[slot.path]) for number, slot in enumerate(inputs) if slot.path in output
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


def _stablehlo(tensors: list[torch.Tensor]) -> bytes:
    return private._get_stablehlo(tensors, str(tensors[0].device), [], True)  # as bytecode


def _named_tensors(tree: Any, name: str) -> list[tuple[str, torch.Tensor]]:
    leaves = trees.named_leaves(tree, name)
    return [(path, leaf) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]


def _placeholder(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype == torch.float8_e4m3fn:  # which the public function does not know
        shape = private.mkshape("f8e4m3fn", tuple(tensor.shape))
        return private._xla_create_placeholder_tensor(shape.shape)
    return private.create_placeholder_tensor(tensor.shape, tensor.dtype)


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


def count_costs(graph: Graph) -> dict[str, Any]:
    """Counts what a graph holds and costs, as plain values for JSON; bytes and FLOPs of one rank.

    `bytes_read` counts every argument once, of a lookup table the rows that are looked up;
    `bytes_written` the outputs, of a KV cache the new tokens. `peak_bytes` is arguments plus
    outputs that no argument gives its memory to, plus the temporaries of an unfused run.
    """
    module = graph.module
    kinds = {"params": "weights"}
    arguments: dict[str, dict[str, int]] = {
        kind: {"count": 0, "bytes": 0, "bytes_read": 0}
        for kind in ("weights", "state", "tokens", "captured")
    }
    for path, parameter in zip(graph.arguments, module.parameters, strict=True):
        tree = re.split(r"[.\[]", path, maxsplit=1)[0]
        empty = {"count": 0, "bytes": 0, "bytes_read": 0}
        entry = arguments.setdefault(kinds.get(tree, tree), empty)
        entry["count"] += 1
        entry["bytes"] += parameter.bytes
        entry["bytes_read"] += module.bytes_read(parameter)
    aliased = {output for _, output in graph.donated}
    outputs = [module.entry[name] for name in module.root.operands]
    fresh = sum(out.bytes for index, out in enumerate(outputs) if index not in aliased)
    argument_bytes = sum(entry["bytes"] for entry in arguments.values())
    temporaries = module.temporary_bytes()
    read = sum(entry["bytes_read"] for entry in arguments.values())
    return {
        "phase": graph.phase,
        "mesh": dataclasses.asdict(graph.mesh),
        "rank": graph.rank,
        "batch": graph.batch,
        "tokens": graph.tokens,
        "capacity": graph.capacity,
        "dtype": graph.dtype,
        "arguments": arguments,
        "argument_bytes": argument_bytes,
        "flops": module.flops(),
        "bytes_read": read,
        "bytes_read_per_token": read / (graph.batch * graph.tokens),
        "bytes_written": sum(_written(module, out) for out in outputs),
        "collectives": module.collectives(),
        "donated": [
            {"argument": graph.arguments[number], "parameter": number, "output": output}
            for number, output in graph.donated
        ],
        "histogram": module.histogram(),
        "custom_calls": module.custom_calls(),
        "constant_bytes": module.constant_bytes(),
        "temporary_bytes": temporaries,
        "peak_bytes": argument_bytes + fresh + temporaries,
    }


def _written(module: Module, output: Any) -> int:
    """Counts bytes that an output takes to write: a scatter into a donated buffer its updates."""
    while output.opcode in ("reshape", "transpose") and output.operands:
        output = module.entry[output.operands[0]]
    if output.opcode == "scatter":
        return module.entry[output.operands[2]].bytes
    return output.bytes
