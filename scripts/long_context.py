#!/usr/bin/env python
"""What length costs: a chunk of prefill, a decoded token and memory, up to 32,768 tokens.

  scripts/long_context.py --plot length.png             # times at a few lengths: some minutes
  scripts/long_context.py --read --plot length.png      # also reads every token, for memory

Random weights of a published geometry, on XLA. Times are taken at a few lengths at once, by setting
the position of an empty state: they do not depend on what the cache holds. The DeltaNet layers are
timed alone as the same geometry without its attention layers. With --read the prompt is read
for real, in chunks, the KV cache growing by powers of two, and the process's memory is held
against what the state should take. A table on standard error, JSON on standard output.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import qwen35
from qwen35.bench.machine import anonymous_memory, measure_rates
from qwen35.files import aside
from qwen35.generation.generate import PREFILL_CHUNK
from qwen35.graphs.summary import summarize
from qwen35.model.config import Config
from qwen35.xla.devices import release_host_memory, run_pending_of
from qwen35.xla.trees import tensors

LENGTHS = (512, 2048, 8192, 32768)
LINEAR = "linear_attention"
SMALLEST_CAPACITY = 1024


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="0.8b", choices=list(qwen35.presets))
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, metavar="N")
    parser.add_argument("--chunk", type=int, default=PREFILL_CHUNK, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="chunks timed; %(default)s")
    parser.add_argument("--steps", type=int, default=12, help="tokens timed; %(default)s")
    parser.add_argument("--layers", type=int, help="only the first so many of the preset's")
    parser.add_argument("--read", action="store_true", help="read the longest length for real")
    parser.add_argument("--plot", metavar="PNG", help="write a picture")
    options = parser.parse_args()
    if min(options.lengths) < options.chunk:
        parser.error(f"lengths must be at least the chunk of {options.chunk}")
    report = measure(options)
    print(table(report), file=sys.stderr)
    print(json.dumps(report, indent=1))
    if options.plot:
        plot(report, Path(options.plot))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, times in seconds and sizes in bytes."""
    config = qwen35.presets[options.preset].text_only()
    if options.layers:
        kinds = config.layer_types[: options.layers]
        config = dataclasses.replace(config, num_hidden_layers=len(kinds), layer_types=kinds)
    say(f"read bandwidth of the machine, then {options.preset}")
    sizes = summarize(config, torch.float32)
    report: dict[str, Any] = {
        "preset": options.preset,
        "layers": config.num_hidden_layers,
        "chunk": options.chunk,
        "read_bytes_per_second": 1e9 * measure_rates().read_gbps,
        "kv_bytes_per_token": sizes["kv_bytes_per_token"],
        "state_bytes": sizes["state_bytes_per_sequence"],
    }
    if options.read:  # first: what other models leave behind would be counted
        report["read"] = read(config, max(options.lengths), options.chunk)
    report["whole"] = times(config, options.lengths, options)
    kinds = tuple(kind for kind in config.layer_types if kind == LINEAR)
    alone = dataclasses.replace(config, num_hidden_layers=len(kinds), layer_types=kinds)
    report["deltanet"] = times(alone, (min(options.lengths), max(options.lengths)), options)
    return report


def times(
    config: Config, lengths: Sequence[int], options: argparse.Namespace
) -> list[dict[str, float]]:
    """Of the last chunk and of the next tokens, at each length."""
    params = qwen35.init_params(config, device="xla")
    prefill = qwen35.jit(qwen35.prefill, donate=("state",))
    decode = qwen35.jit(qwen35.decode, donate=("state",))
    chunk = qwen35.device_put(some_tokens(config, options.chunk), "xla")
    token = qwen35.device_put(some_tokens(config, 1)[0], "xla")
    results = []
    for length in lengths:
        say(f"{config.num_hidden_layers} layers at {length:,} tokens")

        def timed(step, inputs, seen, count, length=length):
            """Medians of `count` runs after one that compiles."""
            state = qwen35.init_state(params, batch=1, capacity=length)
            taken = []
            for _ in range(count + 1):
                position = qwen35.device_put(torch.tensor([seen], dtype=torch.int32), "xla")
                state = state._replace(position=position)
                start = time.perf_counter()
                logits, state = step(params, state, inputs)
                logits.cpu()
                taken.append(time.perf_counter() - start)
            return statistics.median(taken[1:])

        results.append(
            {
                "length": length,
                "chunk": timed(prefill, chunk, length - options.chunk, options.repeats),
                "token": timed(decode, token, length - 1, options.steps),
            }
        )
    return results


def read(config: Config, length: int, chunk: int) -> dict[str, Any]:
    """Reads `length` tokens for real; seconds of every chunk, memory after every growth."""
    params = qwen35.init_params(config, device="xla")
    run_pending_of(tensors(params))
    prefill = qwen35.jit(qwen35.prefill, donate=("state",))
    prompt, capacity = some_tokens(config, length), min(SMALLEST_CAPACITY, length)
    release_host_memory()
    before = anonymous_memory()
    state = qwen35.init_state(params, batch=1, capacity=capacity)
    chunks, memory = [], {}
    for start in range(0, length, chunk):
        piece = qwen35.device_put(prompt[:, start : start + chunk].contiguous(), "xla")
        end = start + piece.shape[1]
        if end > capacity:
            capacity = min(2 * capacity, length)
            state = qwen35.grow(state, capacity)
            run_pending_of(tensors(state))
        prefill.compile(params, state, piece)  # once per capacity
        begin = time.perf_counter()
        logits, state = prefill(params, state, piece)
        logits.cpu()
        chunks.append({"end": end, "seconds": time.perf_counter() - begin})
        memory[capacity] = {
            "state_and_kv": sum(leaf.nbytes for leaf in tensors(state)),
            "process": anonymous_memory() - before,
        }
        if end == capacity:
            say(f"{end:,} tokens read, chunks of {chunks[-1]['seconds']:.2f} s now")
    assert logits.cpu().isfinite().all()
    return {
        "chunks": chunks,
        "memory": [{"capacity": capacity, **entry} for capacity, entry in memory.items()],
    }


def some_tokens(config: Config, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (1, count), generator=generator)


def expected_token(report: dict[str, Any], length: int) -> float:
    """Seconds of a token if only reading the KV cache were added to the shortest length's."""
    first = report["whole"][0]
    more = (length - first["length"]) * report["kv_bytes_per_token"]
    return first["token"] + more / report["read_bytes_per_second"]


def table(report: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"{'tokens':>8} {'chunk':>9} {'token':>9} {'token, if only KV were read':>28}"]
    for entry in report["whole"]:
        lines.append(
            f"{entry['length']:>8,} {entry['chunk']:>7.2f} s {1e3 * entry['token']:>6.0f} ms "
            f"{1e3 * expected_token(report, entry['length']):>25.0f} ms"
        )
    short, long = report["deltanet"][0], report["deltanet"][-1]
    lines.append(
        f"without attention layers: chunk {short['chunk']:.2f} s at {short['length']:,} tokens, "
        f"{long['chunk']:.2f} s at {long['length']:,}; token {1e3 * short['token']:.0f} ms, "
        f"{1e3 * long['token']:.0f} ms"
    )
    lines.append(
        f"state {report['state_bytes'] / 1e6:.1f} MB, KV {report['kv_bytes_per_token'] / 1e3:.1f} "
        f"kB per token; the machine reads {report['read_bytes_per_second'] / 1e9:.1f} GB/s"
    )
    if "read" in report:
        total = sum(entry["seconds"] for entry in report["read"]["chunks"])
        lines.append(f"read in {total:.0f} s, chunk by chunk")
        for entry in report["read"]["memory"]:
            formula = report["state_bytes"] + entry["capacity"] * report["kv_bytes_per_token"]
            lines.append(
                f"capacity {entry['capacity']:>6,}: state and KV {entry['state_and_kv'] / 1e6:.1f} "
                f"MB, by the formula {formula / 1e6:.1f}; the process has "
                f"{entry['process'] / 1e6:.1f} MB more than before"
            )
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """Chunk time, token time and memory over length, written aside and renamed."""
    from matplotlib.figure import Figure

    panels = 3 if "read" in report else 2
    figure = Figure(figsize=(4 * panels, 3.4), layout="constrained")
    axes = figure.subplots(1, panels)
    lengths = [entry["length"] for entry in report["whole"]]
    ours, alone = report["whole"], report["deltanet"]
    axes[0].plot(lengths, [entry["chunk"] for entry in ours], "o-", label="whole model")
    axes[0].plot(
        [entry["length"] for entry in alone],
        [entry["chunk"] for entry in alone],
        "s--",
        label="without attention layers",
    )
    axes[0].set(title=f"prefill of {report['chunk']} tokens", ylabel="s")
    axes[1].plot(lengths, [1e3 * entry["token"] for entry in ours], "o-", label="measured")
    expected = [1e3 * expected_token(report, length) for length in lengths]
    axes[1].plot(lengths, expected, ":", color="grey", label="+ KV / read bandwidth")
    axes[1].set(title="a decoded token", ylabel="ms")
    if "read" in report:
        memory = report["read"]["memory"]
        capacities = [entry["capacity"] for entry in memory]
        formula = [report["state_bytes"] + c * report["kv_bytes_per_token"] for c in capacities]
        axes[2].plot(
            capacities, [entry["process"] / 1e6 for entry in memory], "o-", label="process"
        )
        axes[2].plot(
            capacities, [size / 1e6 for size in formula], ":", color="grey", label="formula"
        )
        axes[2].set(title="memory beyond the weights", ylabel="MB")
    for ax in axes:
        ax.set(xlabel="tokens", xscale="log")
        ax.set_xscale("log", base=2)
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    with aside.replaced(path) as file:
        figure.savefig(file, format="png", dpi=130)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
