"""Which instances of AWS hold a model, split over how many of their cores: by documented sizes.

Nothing here has been tried on one. What fits leaves memory for the activations of a step and for
the program, which the compiler alone knows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..model.config import Config
from ..model.declarations import axis_sizes
from ..sharding.layout import possible_tp
from ..sharding.mesh import Mesh
from .placement import TRN2_CORE_BYTES, describe
from .summary import short_bytes


@dataclass(frozen=True)
class Instance:
    """A kind of machine: its cores, of which each runs a rank, and the memory that one has."""

    name: str
    cores: int
    core: str
    core_bytes: int


# Documented: a Trainium2 chip has 96 GiB and four logical cores of two physical ones (LNC=2), a
# Trainium or Inferentia2 chip 32 GiB and two cores.
INSTANCES = (
    Instance("inf2.xlarge", 2, "core", 16 * 2**30),
    Instance("inf2.24xlarge", 12, "core", 16 * 2**30),
    Instance("inf2.48xlarge", 24, "core", 16 * 2**30),
    Instance("trn1.2xlarge", 2, "core", 16 * 2**30),
    Instance("trn1.32xlarge", 32, "core", 16 * 2**30),
    Instance("trn2.3xlarge", 4, "logical core", TRN2_CORE_BYTES),
    Instance("trn2.48xlarge", 64, "logical core", TRN2_CORE_BYTES),
)


@dataclass(frozen=True)
class Fit:
    """How a model fits an instance.

    Attributes:
        instance: the machine.
        tp: the fewest ranks that it fits on, or the most that it can be split over there.
        needed: bytes on each of their cores: weights, a vision tower, states and KV caches.
        sequences: as many of this context go beside the weights on those ranks.
    """

    instance: Instance
    tp: int
    needed: int
    sequences: int

    @property
    def fits(self) -> bool:
        """Whether a core has as much."""
        return self.needed <= self.instance.core_bytes

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        instance = dataclasses.asdict(self.instance)
        return {
            **instance,
            "tp": self.tp,
            "needed_bytes": self.needed,
            "fits": self.fits,
            "sequences": self.sequences,
        }

    def render(self, model: str) -> str:
        """Renders a line for a terminal; `model` names model, dtype and what it is to hold."""
        machine = self.instance
        left = machine.core_bytes - self.needed
        each = f"{machine.cores} {machine.core}s of {short_bytes(machine.core_bytes)}"
        if not self.fits:
            verdict = f"{model} does not fit: {short_bytes(-left)} a core too much at tp {self.tp}"
        else:
            verdict = (
                f"{model} at tp {self.tp} fits with {short_bytes(left)} left on a core "
                f"({self.sequences:,} sequences at most)"
            )
        return f"  {machine.name:<15}{each}: {verdict}"


def fits(
    config: Config,
    *,
    dtype: torch.dtype | str = torch.bfloat16,
    context: int = 4096,
    weights: str | None = None,
    head: str | None = None,
) -> list[Fit]:
    """Finds how the model, with a sequence of `context` tokens, fits each of `INSTANCES`.

    Args:
        config: the model, with its vision tower if it has one.
        dtype: of weights, convolution state and KV cache.
        context: tokens of a sequence.
        weights, head: how `load` is to quantise, as there.
    """
    sizes = {}
    for tp in possible_tp(axis_sizes(config)):
        if tp > max(instance.cores for instance in INSTANCES):
            break
        mesh = Mesh(tp=tp)
        held = describe(config, mesh, dtype=dtype, capacity=context, weights=weights, head=head)
        sizes[tp] = held.weight_bytes + held.vision_bytes, held.state_bytes + held.kv_bytes
    return [_fit(instance, sizes) for instance in INSTANCES]


def _fit(instance: Instance, sizes: dict[int, tuple[int, int]]) -> Fit:
    possible = [tp for tp in sizes if tp <= instance.cores]
    enough = [tp for tp in possible if sum(sizes[tp]) <= instance.core_bytes]
    tp = enough[0] if enough else possible[-1]
    fixed, row = sizes[tp]
    return Fit(instance, tp, fixed + row, max(0, (instance.core_bytes - fixed) // row))


def render(fitting: Sequence[Fit], model: str) -> str:
    """Renders a line for each instance."""
    lines = (fit.render(model) for fit in fitting)
    return "\n".join(["instances   by documented sizes; a rank on each core", *lines])
