"""Times a model in several precisions: the same steps in one process, in alternation.

    scripts/compare_precisions.py float32 bfloat16 [--preset 0.8b] [--layers 4] [--rounds 11]

Each row has the medians of all, and the median of the rounds' ratios to the first: above 1 is
faster. Weights are random.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import qwen35
from qwen35.xla.trees import tensors


def cut(name: str, layers: int | None) -> qwen35.Config:
    """The preset's text model, with its first layers only."""
    config = qwen35.presets[name].text_only()
    if not layers:
        return config
    kinds = config.layer_types[:layers]
    return dataclasses.replace(config, num_hidden_layers=len(kinds), layer_types=kinds)


def prepared(params: qwen35.Params) -> dict[str, Callable[[], float]]:
    """What is timed: each function runs once and gives its seconds a step."""
    decode, prefill = (
        qwen35.jit(step, donate=("state",)) for step in (qwen35.decode, qwen35.prefill)
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, params.config.vocab_size, (8, 512), generator=generator)

    def put(tree: Any) -> Any:
        return qwen35.device_put(tree, "xla")

    def timed(call: Callable[[], torch.Tensor]) -> float:
        start = time.perf_counter()
        qwen35.device_put(call(), "cpu")  # waits for the device
        return time.perf_counter() - start

    def decoding(rows: int, steps: int = 8) -> Callable[[], float]:
        token, state = put(ids[:rows, 0].contiguous()), None

        def run() -> torch.Tensor:
            nonlocal state
            if state is None:  # in the round that is not counted
                state = qwen35.init_state(params, rows, 1024)
            for _ in range(steps):
                logits, state = decode(params, state, token)
            state = state._replace(position=state.position * 0 + 512)
            return logits

        return lambda: timed(run) / steps

    prompt = put(ids[:1])
    return {
        "decode, 1 row": decoding(1),
        "decode, 8 rows": decoding(8),
        "prefill of 512": lambda: timed(
            lambda: prefill(params, qwen35.init_state(params, 1, 1024), prompt)[0]
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("precisions", nargs="+", choices=("float32", "bfloat16"))
    parser.add_argument("--preset", default="0.8b")
    parser.add_argument("--layers", type=int, help="of the model; all of them if left out")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    options = parser.parse_args()
    config = cut(options.preset, options.layers)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next(line for line in lines if line.startswith("model name")).partition(":")[2]
    print(f"{processor.strip()}, {config.num_hidden_layers} layers of {options.preset}")
    steps = {}
    for name in options.precisions:
        params = qwen35.init_params(config, dtype=name, device="xla")
        size = sum(tensor.nbytes for tensor in tensors(params))
        state = sum(tensor.nbytes for tensor in tensors(qwen35.init_state(params, 1, 4096)))
        print(f"{name}: weights {size / 1e6:.0f} MB, state of 4096 tokens {state / 1e6:.1f} MB")
        steps[name] = prepared(params)
    for row in steps[options.precisions[0]]:
        if options.only not in row:
            continue
        for own in steps.values():
            own[row]()
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(options.rounds):
            for name in list(steps)[:: 1 if number % 2 else -1]:
                seconds[name].append(steps[name][row]())
        first = seconds[options.precisions[0]]
        cells = []
        for name, own in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(first, own, strict=True))
            cells.append(f"{name} {1e3 * statistics.median(own):.1f} ms ({ratio:.2f})")
        print(f"{row:<16}" + ", ".join(cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
