"""Where a step's layers are cut, so that equal runs of them share a compiled graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree

from ..forms import Plain, get, resolve
from ..xla.chains import cannot_cut, chain
from ..xla.trees import register_frozen
from .config import Config
from .params import AttentionLayer, DeltaNetLayer, Params, Runtime
from .stacked_layers import StackedLayers


@dataclass(frozen=True, eq=False)
class SomeLayers:
    """Some of the layers that `Params` holds, a frozen pytree with the same static context."""

    layers: Sequence[DeltaNetLayer | AttentionLayer]
    config: Config
    runtime: Runtime

    @property
    def forms(self) -> Plain:
        """How operations on these layers are formed."""
        device = self.layers[0].input_norm.device.type
        return get(resolve(self.runtime.forms, device))


pytree.register_dataclass(SomeLayers)
register_frozen(SomeLayers)


class Around(NamedTuple):
    """What all layers have of a part: lengths [B], cosines and sines [B, T, rotary_dim / 2], tokens
    before these [B]."""

    lengths: Tensor | None
    rope: tuple[Tensor, Tensor]
    position: Tensor


def runs(params: Params) -> list[SomeLayers]:
    """The layers in the order in which they run, cut as `Runtime.segments` says; one run of all
    where that can't be, which jit is told."""
    layers, segments = params.layers, params.runtime.segments
    uncut = [whole(params)]
    if segments == 1:
        return uncut
    if isinstance(layers, StackedLayers):
        cannot_cut("all ranks are in one process")
        return uncut
    kinds = [type(layer) for layer in layers]
    size = _period(kinds) if segments == "auto" else len(layers) // int(segments)
    if segments == "auto" and size == len(layers):
        cannot_cut(f"the kinds of its {len(layers)} layers don't repeat")
        return uncut
    if segments != "auto" and not _equal(kinds, int(segments)):
        fitting = [str(n) for n in range(2, len(layers) + 1) if _equal(kinds, n)]
        other = f"; {', '.join(fitting)} would do" if fitting else ""
        cannot_cut(f"its {len(layers)} layers make no {segments} equal segments{other}")
        return uncut
    starts = range(0, len(layers), size)
    cut = (layers[start : start + size] for start in starts)
    return [SomeLayers(some, params.config, params.runtime) for some in cut]


def whole(params: Params) -> SomeLayers:
    """All layers, as one run."""
    return SomeLayers(params.layers, params.config, params.runtime)


def in_turn(
    body: Callable[..., tuple[Tensor, list[list[Any]]]],
    runs: Sequence[SomeLayers],
    x: Tensor,
    around: list[Around],
    states: Sequence[Sequence[Any]],
    last_only: bool,
) -> tuple[Tensor, list[list[Any]]]:
    """Runs `body(x, around, (run, narrow), states)` for each run, and gives what it gives for all.

    Args:
        body: gives x after a run's layers and, of each part, their new states; x of each row's last
            token only where `narrow`.
        states: of each part, of all layers.
        last_only: narrow the last run.
    """
    # Of one token a row there is no other than the last: the last run is like the others then.
    narrow = last_only and any(part.rope[0].shape[1] > 1 for part in around)
    if narrow and runs[0].runtime.segments == "auto":
        # Otherwise what stands before the last layer would be compiled once more for its sake.
        runs = [part for run in runs for part in _by_kind(run)]
    pairs = []
    start = 0
    for run in runs:
        end = start + len(run.layers)
        pairs.append(((run, narrow and run is runs[-1]), [layers[start:end] for layers in states]))
        start = end
    x, news = chain(body, x, around, pairs)
    return x, [[layer for some in of_part for layer in some] for of_part in zip(*news, strict=True)]


def _by_kind(run: SomeLayers) -> list[SomeLayers]:
    """A run's neighbours of one kind, each a run."""
    alike = (tuple(some) for _, some in itertools.groupby(run.layers, type))
    return [SomeLayers(layers, run.config, run.runtime) for layers in alike]


def _period(kinds: Sequence[Any]) -> int:
    """After how many layers their kinds begin again."""
    return next(n for n in range(1, len(kinds) + 1) if list(kinds[n:]) == list(kinds[:-n]))


def _equal(kinds: Sequence[Any], count: int) -> bool:
    """Whether so many equal runs make the layers."""
    size, rest = divmod(len(kinds), count)
    return rest == 0 and size > 0 and list(kinds) == list(kinds[:size]) * count
