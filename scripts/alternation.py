"""Steps of a model, timed in alternation in one process: what the scripts that compare share."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

Steps = dict[str, Callable[[], float]]  # each runs once and gives its seconds


class Row(NamedTuple):
    """What was timed, and of each side the median of its seconds and that of the rounds' ratios of
    the first side's seconds to its own: above 1 is faster than the first."""

    name: str
    seconds: dict[str, float]
    ratios: dict[str, float]


def processor() -> str:
    """Names the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def cut(config: Any, layers: int | None) -> Any:
    """A model's configuration with its first layers only, of its vision tower too."""
    if not layers:
        return config
    kinds, vision = config.layer_types[:layers], config.vision
    if vision is not None:
        vision = dataclasses.replace(vision, depth=min(layers, vision.depth))
    return dataclasses.replace(
        config, num_hidden_layers=len(kinds), layer_types=kinds, vision=vision
    )


def prepared(
    package: Any,
    params: Any,
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    capacity: int = 1024,
) -> Steps:
    """What is timed of a model, through the public names of a package `qwen35` alone.

    Args:
        package: the module.
        params: its parameters, on the device where they are to be timed.
        around: makes a context in which the package's code runs.
        capacity: tokens that a state has room for; 520 at least.
    """
    device, config = params.device.type, params.config
    wrap = package.jit if device == "xla" else lambda step, donate=(): step
    decode, prefill = (wrap(step, donate=("state",)) for step in (package.decode, package.prefill))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (8, 512), generator=generator)

    def put(tree: Any) -> Any:
        return package.device_put(tree, device)

    def timed(call: Callable[[], Any]) -> float:
        with around(), torch.no_grad():
            start = time.perf_counter()
            package.device_put(call(), "cpu")  # waits for the device
            return time.perf_counter() - start

    def decoding(rows: int, steps: int = 8) -> Callable[[], float]:
        token, state = put(ids[:rows, 0].contiguous()), None

        def run() -> torch.Tensor:
            nonlocal state
            if state is None:  # in the round that is not counted
                state = package.init_state(params, rows, capacity)
            for _ in range(steps):
                logits, state = decode(params, state, token)
            state = state._replace(position=state.position * 0 + 512)
            return logits

        return lambda: timed(run) / steps

    prompt = put(ids[:1])
    rows = {
        "decode, 1 row": decoding(1),
        "decode, 8 rows": decoding(8),
        "prefill of 512": lambda: timed(
            lambda: prefill(params, package.init_state(params, 1, capacity), prompt)[0]
        ),
    }
    if params.vision is not None:
        patches = torch.randn(32 * 32, config.vision.patch_dim, generator=generator)
        rows["picture of 512²"] = lambda: timed(
            lambda: package.encode_images(params.vision, patches, [(1, 32, 32)])
        )
    return rows


def alternate(sides: Mapping[str, Steps], rounds: int, only: str = "") -> Iterator[Row]:
    """Times the sides in turn, in an order that turns around from round to round.

    Args:
        sides: what is timed on each; the first is what the others are compared to.
        rounds: that are counted. One before them compiles.
        only: of the steps, those whose name holds this.
    """
    names = list(sides)
    for row in sides[names[0]]:
        if only not in row:
            continue
        for steps in sides.values():
            steps[row]()
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds):
            for name in names[:: 1 if number % 2 else -1]:
                seconds[name].append(sides[name][row]())
        first = seconds[names[0]]
        ratios = {
            name: statistics.median(a / b for a, b in zip(first, own, strict=True))
            for name, own in seconds.items()
        }
        yield Row(row, {name: statistics.median(own) for name, own in seconds.items()}, ratios)
