"""What `qwen35 bench` measures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..checks.values import integer
from ..sharding.process import TIMEOUT
from .placement import Placement

# Settings that are no positive integers.
_NO_COUNTS = (
    *("parts", "device", "timeout", "reference", "loads", "seed", "weights", "head", "segments"),
)


@dataclass(frozen=True)
class Settings:
    """What is measured; the command line's options.

    Attributes:
        parts: keys of `PARTS`.
        tp, dp, device, timeout: see `Placement`; ranks are virtual devices on "xla", else the
            processes of torchrun.
        reference: measure transformers too.
        rounds, threads: see `alternate`.
        lengths: of prompts.
        contexts: tokens before a decode step of one row.
        batches: rows of a decode step after the first of `contexts`.
        steps: of decode that are timed.
        slots: of the engine; arrivals use the most.
        requests: how many arrive.
        request_tokens: the most prompt tokens and new tokens of each.
        loads: shares of the engine's most requests per second.
        seed: of arrivals and requests.
        prefix_tokens: those that two prompts share, and those that follow.
        layers: of the models that are compiled.
        sides: of square pictures, in pixels.
        large_side: of the picture for memory and compilation.
        weights, head: how text, the engine and memory are measured of this project, as for `load`.
        segments: of this project's `Runtime`, for all parts.
    """

    parts: tuple[str, ...]
    tp: int = 1
    dp: int = 1
    device: str = "xla"
    timeout: float = TIMEOUT
    reference: bool = True
    rounds: int = 3
    threads: int = 2
    lengths: tuple[int, ...] = (128, 512, 2048)
    contexts: tuple[int, ...] = (128, 2048, 8192, 32768)
    batches: tuple[int, ...] = (1, 2, 4, 8)
    steps: int = 32
    slots: tuple[int, ...] = (1, 2, 4, 8)
    requests: int = 24
    request_tokens: tuple[int, int] = (128, 32)
    loads: tuple[float, ...] = (0.5, 0.8)
    seed: int = 0
    prefix_tokens: tuple[int, int] = (2000, 16)
    layers: tuple[int, ...] = (24, 64)
    sides: tuple[int, ...] = (512, 1024)
    large_side: int = 2048
    weights: str | None = None
    head: str | None = None
    segments: int | str = 1

    def __post_init__(self) -> None:
        counts: dict[str, Any] = {
            name: value for name, value in vars(self).items() if name not in _NO_COUNTS
        }
        for name, value in counts.items():
            values = value if isinstance(value, tuple) else (value,)
            if not values:
                raise ValueError(f"{name} must have at least one entry")
            for entry in values:
                integer(name, entry)
        if not self.loads or any(not 0 < load < 100 for load in self.loads):
            raise ValueError(f"loads must be shares above 0, such as 0.8, not {self.loads!r}")

    @property
    def place(self) -> dict[str, Any]:
        """Where this project's model is, as a job's argument."""
        names = [field.name for field in dataclasses.fields(Placement)]
        return {name: getattr(self, name) for name in names}

    @property
    def one_device(self) -> bool:
        """Whether this project's model is on one XLA device."""
        return self.tp * self.dp == 1 and self.device == "xla"

    @property
    def decodes(self) -> list[list[int]]:
        """Pairs of context and batch."""
        rows = [[context, 1] for context in self.contexts]
        return rows + [[self.contexts[0], batch] for batch in self.batches if batch > 1]
