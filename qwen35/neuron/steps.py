"""The steps of `qwen35 neuron run`, in rising order: what each needs, and how long it may take.

A step is a module of this package with a `measure`, which runs in a process of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What a run is asked for.

    Attributes:
        model: checkpoint directory of the model that is timed; None is random weights of `preset`.
        preset: its geometry.
        tp: ranks that it is split over.
        demo, demo_vision: directories of the toys; None where they are not there.
        output: the run's directory, for what a step writes beside its outcome.
    """

    model: str | None = None
    preset: str = "0.8b"
    tp: int = 1
    demo: str | None = None
    demo_vision: str | None = None
    output: str = ""


class AbsentError(Exception):
    """A step needs something that is not there; that is no failure of the device."""


@dataclass(frozen=True)
class Step:
    """A step.

    Attributes:
        name: of its module in this package too.
        title: for the report.
        minutes: that it may take; compilations are most of it.
        ranks: whether it runs in a process for each rank of the model.
    """

    name: str
    title: str
    minutes: float
    ranks: bool = False

    def measure(self, settings: Settings) -> dict[str, Any]:
        """Runs it here: `tests`, a list of `outcomes.Test` as plain values, and `figures`."""
        function: Callable[[Settings], dict[str, Any]]
        function = importlib.import_module(f".{self.name}", __package__).measure
        return function(settings)


STEPS = (
    Step("arithmetic", "device arithmetic that the model relies on", 20),
    Step("nki_kernels", "the NKI kernels against a float64 loop", 60),
    Step("portable", "the portable form against the same loop", 45),
    Step("model", "the whole model on the demo checkpoint", 30),
    Step("occupancy", "what the state holds after each step", 30),
    Step("donation", "memory over a thousand donated steps", 30),
    Step("ranks", "a model split over ranks", 45, ranks=True),
    Step("vision", "pictures on the demo that sees", 45),
    Step("engine", "requests that share a batch", 60),
    Step("speed", "time to first token, and per token", 180, ranks=True),
    Step("segments", "one graph, and one for each run of layers", 240, ranks=True),
    Step("buckets", "prefill steps of several sizes", 240, ranks=True),
    Step("profile", "a profile of the demo", 30),
)


def step_named(name: str) -> Step:
    """Returns a step by its name."""
    [step] = [step for step in STEPS if step.name == name]
    return step
