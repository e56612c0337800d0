#!/usr/bin/env python
"""Compares what a decode step costs the host on one device and on the virtual devices of tp ranks.

  scripts/benchmark_ranks.py                 24 narrow layers with the heads of 27b, tp 4
  scripts/benchmark_ranks.py --tp 8 --layers 8 --json ranks.json

Two processes, one for each number of devices, take turns with blocks of steps, so that what else
the machine does falls on both. Widths are tiny: little but overhead is left. "host" is the
processor time of the calling thread until the call of the compiled step returns, with the step
before it finished; "step" the time until the logits are read; "collectives" the part of a step
that is saved without its all-reduces (the results are then wrong, the other work is the same).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from unittest import mock

import torch

import qwen35
from qwen35.sharding import spmd
from qwen35.sharding.mesh import Mesh

BLOCK, WARM_UP = 20, 20

# Seconds per step: processor time of the call, and time until the logits are read.
Times = dict[str, list[float]]


def config_of(layers: int) -> qwen35.Config:
    """A narrow model with the head counts of 27b."""
    return qwen35.Config(
        vocab_size=160,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=layers,
        head_dim=8,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_attention_heads=24,
        num_key_value_heads=4,
        linear_num_key_heads=16,
        linear_num_value_heads=48,
        mrope_section=(1, 1, 0),
        partial_rotary_factor=0.5,
    )


def serve(connection: Connection, tp: int, layers: int, steps: int) -> None:
    """A process: times a block of steps, with ("right") or without all-reduces, when asked to."""
    mesh, runtime = Mesh(tp=tp), qwen35.Runtime()
    if tp > 1:
        spmd.start(mesh)
        runtime = qwen35.Runtime(mesh=mesh, rank=None)
    params = qwen35.init_params(config_of(layers), device="xla", runtime=runtime)
    blocks = {"right": decoder(params, steps)}
    if tp > 1:
        with (
            mock.patch("qwen35.model.parts.all_reduce", lambda x, mesh: x),
            mock.patch("qwen35.model.decoder.all_reduce", lambda x, mesh: x),
        ):
            blocks["alone"] = decoder(params, steps)
    connection.send(list(blocks))
    while (name := connection.recv()) is not None:
        connection.send(blocks[name]())


def decoder(params: qwen35.Params, steps: int) -> Callable[[], Times]:
    """A function that decodes BLOCK more tokens, compiled and warm."""
    # A function of its own: a graph is traced once for each, with what all_reduce is then.
    decode = qwen35.jit(
        lambda params, state, token: qwen35.decode(params, state, token), donate=("state",)
    )
    token = qwen35.device_put(torch.tensor([1]), "xla")
    state = qwen35.init_state(params, 1, WARM_UP + steps)

    def run(count: int = BLOCK) -> Times:
        nonlocal state
        host, step = [], []
        for _ in range(count):
            start, running = time.perf_counter(), time.thread_time()
            logits, state = decode(params, state, token)
            host.append(time.thread_time() - running)
            logits.cpu()
            step.append(time.perf_counter() - start)
        return {"host": host, "step": step}

    run(WARM_UP)
    return run


def measure(tp: int, layers: int, blocks: int) -> dict[str, float]:
    """Median milliseconds per step, the ratio, and the share of the all-reduces."""
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    for ranks in (1, tp):
        here, there = context.Pipe()
        process = context.Process(
            target=serve, args=(there, ranks, layers, blocks * BLOCK), daemon=True
        )
        process.start()
        there.close()
        connections.append(here)
        processes.append(process)
    turns = [(here, name) for here in connections for name in here.recv()]
    times: list[Times] = [{"host": [], "step": []} for _ in turns]
    for _ in range(blocks):
        for (here, name), seen in zip(turns, times, strict=True):
            here.send(name)
            for kind, values in here.recv().items():
                seen[kind] += values
    for here, process in zip(connections, processes, strict=True):
        here.send(None)
        process.join()
    one, ranks, alone = (
        {kind: 1e3 * statistics.median(values) for kind, values in seen.items()} for seen in times
    )
    return {
        "host_1": one["host"],
        "host_tp": ranks["host"],
        "ratio": ranks["host"] / one["host"],
        "step_1": one["step"],
        "step_tp": ranks["step"],
        "collectives": 1 - alone["step"] / ranks["step"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tp", type=int, default=4, help="ranks, at least 2 (default: 4)")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--blocks", type=int, default=20, help=f"of {BLOCK} steps (default: 20)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    for name, least in (("tp", 2), ("layers", 1), ("blocks", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, not {getattr(options, name)}")
    result = measure(options.tp, options.layers, options.blocks)
    print(
        "median ms a step   tp 1  tp {tp}\n"
        "host             {host_1:6.2f} {host_tp:6.2f}   {ratio:.2f} times\n"
        "step             {step_1:6.2f} {step_tp:6.2f}\n"
        "collectives      {collectives:.0%} of a step at tp {tp}".format(tp=options.tp, **result)
    )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
