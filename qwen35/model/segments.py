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
from .config import Config, VisionConfig
from .params import Runtime
from .stacked_layers import StackedLayers


@dataclass(frozen=True, eq=False)
class SomeLayers:
    """Some of the layers that `Params` holds, or of the blocks of `VisionParams`: a frozen pytree
    with the same static context."""

    layers: Sequence[Any]
    config: Any  # a Config, or a VisionConfig
    runtime: Runtime

    @property
    def forms(self) -> Plain:
        """How operations on these layers are formed."""
        device = self.layers[0][0].device.type
        return get(resolve(self.runtime.forms, device))


pytree.register_dataclass(SomeLayers)
register_frozen(SomeLayers)


class Around(NamedTuple):
    """What all layers have of a part: lengths [B], cosines and sines [B, T, rotary_dim / 2], tokens
    before these [B]."""

    lengths: Tensor | None
    rope: tuple[Tensor, Tensor]
    position: Tensor


def runs(
    layers: Sequence[Any], config: Config | VisionConfig, runtime: Runtime
) -> list[SomeLayers]:
    """The layers in the order in which they run, cut as `Runtime.segments` says; one run of all
    where that can't be, which jit is told."""
    whole = SomeLayers(layers, config, runtime)
    if runtime.segments == 1:
        return [whole]
    if isinstance(layers, StackedLayers) and layers.stacks:
        cannot_cut("its ranks' layers were stacked when they were placed, with other segments")
        return [whole]
    every = tuple(layers)
    sizes, otherwise = sizes_of([type(layer) for layer in every], runtime.segments)
    if len(sizes) == 1:
        cannot_cut(otherwise)
        return [whole]
    ends = list(itertools.accumulate(sizes))
    cut = (every[end - size : end] for size, end in zip(sizes, ends, strict=True))
    return [SomeLayers(some, config, runtime) for some in cut]


def sizes_of(kinds: Sequence[Any], segments: int | str) -> tuple[list[int], str]:
    """How many layers each run has, and where that is one run of all, why."""
    count = len(kinds)
    if segments == "auto":
        return _repeating(kinds), f"the kinds of its {count} layers don't repeat"
    if _equal(kinds, int(segments)):
        return [count // int(segments)] * int(segments), ""
    fitting = [str(n) for n in range(2, count + 1) if _equal(kinds, n)]
    other = f"; {', '.join(fitting)} would do" if fitting else ""
    return [count], f"its {count} layers make no {segments} equal segments{other}"


def check_cut(kinds: Sequence[Any], segments: int | str, what: str = "the model") -> None:
    """Raises a ValueError where `runs` would not cut layers of these kinds, with the numbers of
    segments that would do."""
    sizes, otherwise = sizes_of(kinds, segments)
    if segments != 1 and len(sizes) == 1:
        raise ValueError(f"{what} can't be cut with segments = {segments}: {otherwise}")


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
    of_parts = [tuple(layers) for layers in states]
    for run in runs:
        end = start + len(run.layers)
        own = [layers[start:end] for layers in of_parts]
        pairs.append(((run, narrow and run is runs[-1]), own))
        start = end
    x, news = chain(body, x, around, pairs)
    return x, [[layer for some in of_part for layer in some] for of_part in zip(*news, strict=True)]


def _by_kind(run: SomeLayers) -> list[SomeLayers]:
    """A run's neighbours of one kind, each a run."""
    alike = (tuple(some) for _, some in itertools.groupby(run.layers, type))
    return [SomeLayers(layers, run.config, run.runtime) for layers in alike]


def _repeating(kinds: Sequence[Any]) -> list[int]:
    """The sizes of runs, of which all are equal but maybe the first and the last, which are shorter
    than the others: those that leave the fewest layers to compile. One of all layers if no two are
    equal."""
    count = len(kinds)
    best, compiled = [count], count
    for period in range(1, count // 2 + 1):
        for first in range(period):
            equal, last = divmod(count - first, period)
            repeated = list(kinds[first : first + period]) * equal
            if equal < 2 or list(kinds[first : count - last]) != repeated:
                continue
            if first + period + last < compiled:
                compiled = first + period + last
                sizes = [first, *[period] * equal, last]
                best = [size for size in sizes if size]
    return best


def _equal(kinds: Sequence[Any], count: int) -> bool:
    """Whether so many equal runs make the layers."""
    size, rest = divmod(len(kinds), count)
    return rest == 0 and size > 0 and list(kinds) == list(kinds[:size]) * count
