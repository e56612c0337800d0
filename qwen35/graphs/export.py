"""Traces the graph that a rank runs, without weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import torch
from torch.utils import _pytree as pytree

from ..checks.choices import EXPORTED, FP8, KERNELS
from ..checks.values import shown
from ..files.materialize import abstract_params
from ..forms import halved, is_special
from ..model.config import Config, VisionConfig
from ..model.decoder import decode, prefill
from ..model.dtypes import as_dtype
from ..model.params import Params, Runtime, VisionParams
from ..model.state import State, init_state
from ..sharding.mesh import Mesh
from ..vision.frames import Frames, groups
from ..vision.tower import tower
from ..xla import trees
from .design import Design, launch_design
from .launches import lower_launches
from .lint import lint
from .lowering import Lowered, lower_call

PHASES = ("prefill", "prefill_images", "decode", "vision")
_RETURNS = ("logits", "state")


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
    kernels: str = "portable"
    design: Design | None = None

    @property
    def part(self) -> Config | VisionConfig:
        """The part of the model that was traced: the text model, or the tower."""
        tower = self.phase.startswith("vision")
        return self.config.vision if tower and self.config.vision is not None else self.config

    def lint(self) -> list[str]:
        """Returns the rules of `qwen35.graphs.lint` that the graph breaks."""
        return lint(self.case(self.part, self.mesh, self.design, self.kernels))


class StepSettings(TypedDict, total=False):
    """What a step is traced with; each is explained at `trace`."""

    mesh: Mesh
    rank: int
    tokens: int
    capacity: int
    batch: int
    dtype: torch.dtype | str
    weights: str | None
    head: str | None
    fp8: str
    kernels: str


def trace(
    config: Config, phase: str, *, stablehlo: bool = False, **settings: Unpack[StepSettings]
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
        kernels: "portable", or "nki", which a Neuron device and AWS's package `nki` take to trace:
            each DeltaNet layer is a custom call then.
        stablehlo: write the graph as StableHLO as well.

    Raises:
        ValueError: an argument is out of range, the model has no vision tower for that phase, the
            mesh can't split it, or the NKI kernels can't be had.
    """
    step, arguments, facts = _step(config, phase, **settings)
    made = lower_call(step, arguments, _RETURNS, stablehlo=stablehlo)
    return Graph(**vars(made), **facts)


def trace_launches(
    config: Config,
    phase: str,
    *,
    segments: int | str,
    stablehlo: bool = False,
    **settings: Unpack[StepSettings],
) -> list[Graph]:
    """Traces a step as the graphs that `Runtime(segments=…)` cuts it into, in the order of their
    launches (see `launches`).

    Graphs of one `phase`, such as "decode_run_0", are one graph, which takes what it takes at other
    paths. Arguments are those of `trace`.

    Raises:
        ValueError: as `trace`, or the step can't be cut so.
    """
    step, arguments, facts = _step(config, phase, segments=segments, **settings)
    graphs = []
    for name, made in lower_launches(step, arguments, _RETURNS, stablehlo=stablehlo):
        graph = Graph(**vars(made), **facts | {"phase": f"{phase}_{name}"})
        given = {"one_token": phase == "decode", "positions": phase == "prefill_images"}
        design = launch_design(graph.part, name, made.layers, **given)
        graphs.append(dataclasses.replace(graph, design=design))
    return graphs


def _step(
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
    kernels: str = "portable",
    segments: int | str = 1,
) -> tuple[Callable[..., tuple[Any, Any]], dict[str, Any], dict[str, Any]]:
    """Returns a step, its arguments as trees of meta tensors, and what `Graph` says of it.

    Arguments are those of `trace`, with the `segments` of its `Runtime`.
    """
    if phase not in PHASES:
        raise ValueError(f"phase must be one of {PHASES}, not {shown(phase)}")
    for kind in (weights, head):
        if kind not in (None, "dense", *EXPORTED):
            raise ValueError(f"a graph holds weights of {', '.join(EXPORTED)}, not {shown(kind)}")
    if fp8 not in FP8:
        raise ValueError(f"fp8 must be one of {FP8}, not {shown(fp8)}")
    tokens = 1 if phase == "decode" else tokens
    if not 1 <= tokens <= capacity:
        raise ValueError(f"tokens must be from 1 to the capacity of {capacity}, not {tokens}")
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be one of {KERNELS}, not {shown(kernels)}")
    runtime = Runtime(mesh=mesh, rank=rank, forms="plain", kernels=kernels, segments=segments)
    traced = {"phase": phase, "mesh": mesh, "rank": rank, "capacity": capacity, "batch": batch}
    traced["kernels"] = kernels
    traced |= {"config": config, "dtype": str(as_dtype(dtype)).removeprefix("torch.")}
    if phase == "vision":
        if config.vision is None:
            raise ValueError("the model has no vision tower to trace")
        vision = abstract_params(config, dtype=dtype, runtime=runtime).vision
        frames = _abstract_frames(vision, batch, tokens)
        traced["tokens"] = frames.patches.shape[1] // config.vision.merge_factor
        arguments = {"params": vision, "state": (), "tokens": frames}
        return lambda vision, state, frames: (tower(vision, frames), state), arguments, traced
    made = {"weights": weights, "head": head}
    params = abstract_params(config.text_only(), dtype=dtype, runtime=runtime, **made)
    if fp8 == "e4m3":
        params = pytree.tree_map(halved, params, is_leaf=is_special)
    shape = (batch,) if phase == "decode" else (batch, tokens)
    ids = torch.empty(shape, dtype=torch.int32, device="meta")
    step = decode if phase == "decode" else prefill
    arguments = {"params": params, "state": init_state(params, batch, capacity), "tokens": ids}
    more: dict[str, torch.Tensor] = {}
    if phase == "prefill_images":
        size = (batch, tokens, config.hidden_size)
        more["embeds"] = torch.empty(size, dtype=params.dtype, device="meta")
        more["positions"] = ids.expand(3, batch, tokens)

    def call(params: Params, state: State, ids: torch.Tensor, *rest: torch.Tensor) -> Any:
        return step(params, state, ids, **dict(zip(more, rest, strict=True)))

    return call, arguments | more, traced | {"tokens": tokens}


def _abstract_frames(vision: VisionParams, count: int, tokens: int) -> Frames:
    """Makes `count` frames of that many tokens, without data."""
    config = vision.config
    size = (1, config.spatial_merge_size, config.spatial_merge_size * tokens)
    patches = torch.zeros(tokens * config.merge_factor, config.patch_dim, dtype=vision.dtype)
    [frame] = groups(config, patches, [size])
    frames = frame._replace(patches=frame.patches.expand(count, -1, -1))
    return trees.map_tensors(lambda tensor: tensor.to("meta"), frames)
