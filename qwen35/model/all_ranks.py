"""All ranks of a mesh in one process (`Runtime(rank=None)`): the functions that change with it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils import _pytree as pytree

from ..checks.values import shown
from ..forms import as_bits, is_special
from ..sharding import spmd
from .params import Params, Runtime, VisionParams
from .stacked_layers import StackedLayers

# The parameters of functions whose tensors every rank has its own of: its weights, its share of a
# state, of logits and of what else there is for each token of the vocabulary. `position` is a
# state's.
_SHARED_OUT = frozenset(
    ("params", "vision", "state", "row", "rows", "position", "logits", "counts", "bias")
)
# What is small beside a layer's matrices, or beside the rest of its state.
_SMALL = frozenset(
    ("input_norm", "conv", "a_log", "dt_bias", "norm", "post_norm", "q_norm", "k_norm")
)


def dp_rows_here(runtime: Runtime) -> int:
    """Returns how many dp rows are in this process, each with its part of a batch's rows."""
    return 1 if runtime.mesh is None or runtime.rank is not None else runtime.mesh.dp


def load_all_ranks(build: Callable[[Runtime], Params], runtime: Runtime, device: str) -> Params:
    """The stacked parameters of all ranks; `build(runtime)` gives one rank's, on the CPU."""
    if device != "xla":
        raise ValueError(
            f"rank=None keeps each rank's share on an XLA device of its own: device must be "
            f"'xla', not {shown(device)}"
        )
    ranks = [
        build(dataclasses.replace(runtime, rank=rank)).with_runtime(rank=None)
        for rank in range(runtime.mesh.size)
    ]
    if runtime.on(device).forms == "xla_cpu":
        ranks = [pytree.tree_map(as_bits, rank, is_leaf=is_special) for rank in ranks]
    ranks = [dataclasses.replace(rank, layers=kept_layers(rank.layers, runtime)) for rank in ranks]
    # What the stacks were made of was on the CPU; their forms are those of the device.
    return spmd.stack(ranks, runtime.mesh).with_runtime()


def kept_layers(layers: Sequence[Any], runtime: Runtime) -> StackedLayers:
    """One rank's layers, of the parameters or of a state, as they are kept for all ranks: what is
    small stacked over the layers, unless these are cut into graphs of some."""
    return StackedLayers.of(layers, _SMALL if runtime.segments == 1 else ())


def on_all_ranks(*returns_stacked: bool, **row_axes: int) -> Callable[[Callable], Callable]:
    """Lets a function of one rank's `params`, or `vision`, take all ranks' as well.

    Its arguments `state`, `rows`, `logits` and the like are all ranks' then (`_SHARED_OUT`).

    Args:
        returns_stacked: per returned value, whether every rank keeps its own.
        **row_axes: the parameters whose tensors have a batch's rows along another dimension than 0.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def of_one_rank(params: Params | VisionParams, *args: Any, **kwargs: Any) -> Any:
            return function(params.with_runtime(rank=0), *args, **kwargs)

        @functools.wraps(function)
        def run(params: Params | VisionParams, *args: Any, **kwargs: Any) -> Any:
            if params.runtime.rank is not None:
                return function(params, *args, **kwargs)
            mapped = spmd.shard_map(
                of_one_rank,
                params.runtime.mesh,
                stacked=_SHARED_OUT,
                returns_stacked=returns_stacked,
                row_axes=row_axes,
            )
            return mapped(params, *args, **kwargs)

        return run

    return decorate
