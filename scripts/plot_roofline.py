#!/usr/bin/env python
"""Plots the floor of TPOT over batch and context, with published measurements, to a PNG.

  scripts/plot_roofline.py --preset 27b --tp 8 roofline.png

Documented figures of the hardware, not measurements. Lines end where weights and state no longer
fit a logical core's memory. Two graphs are traced; bytes and FLOPs of
other batches and contexts follow, since both are linear in batch and in batch x context.
"""

from __future__ import annotations

import argparse
import sys

import matplotlib

from qwen35 import presets
from qwen35.graphs.costs import count_costs
from qwen35.graphs.export import trace
from qwen35.graphs.placement import TRN2_CORE_BYTES
from qwen35.graphs.roofline import HARDWARE, PUBLISHED, collective_bytes
from qwen35.sharding.mesh import Mesh

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (1024, 4096, 16384, 65536, 262144)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=list(presets), default="27b")
    parser.add_argument("--tp", type=int, default=8)
    parser.add_argument("--hardware", choices=list(HARDWARE), default="trn2")
    parser.add_argument("out", metavar="OUT", help="PNG file to write")
    options = parser.parse_args()
    matplotlib.use("Agg")
    from matplotlib import pyplot

    machine = HARDWARE[options.hardware]
    config, mesh = presets[options.preset], Mesh(tp=options.tp)
    short, long = (
        count_costs(trace(config, "decode", mesh=mesh, capacity=c)) for c in (1024, 2048)
    )

    def milliseconds(batch: int, context: int) -> float:
        def at(quantity) -> float:
            slope = (quantity(long) - quantity(short)) / 1024
            return quantity(short) + slope * (context - 1024)

        state = at(lambda costs: costs["arguments"]["state"]["bytes"])
        if short["arguments"]["weights"]["bytes"] + batch * state > TRN2_CORE_BYTES:
            return float("nan")  # does not fit
        moved = short["arguments"]["weights"]["bytes_read"] + batch * (
            state + short["bytes_written"]
        )
        compute = batch * at(lambda costs: costs["flops"]) / machine.flops["bfloat16"]
        links = batch * collective_bytes(short) / machine.link
        return 1e3 * max(moved / machine.memory, compute, links)

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for context in CONTEXTS:
        times = [milliseconds(batch, context) for batch in BATCHES]
        axes.plot(BATCHES, times, marker="o", markersize=3, label=f"context {context:,}")
    for entry in PUBLISHED:
        if (entry.preset, entry.tp) == (options.preset, options.tp):
            axes.plot(1, entry.tpot, "kx")
            axes.annotate(f"published: {entry.tpot} ms\n{entry.source}", (1, entry.tpot),
                          xytext=(6, 4), textcoords="offset points", fontsize=7)  # fmt: skip
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="batch",
        ylabel="ms per token, at least",
        title=f"Floor of TPOT: {options.preset}, tp {options.tp}, bf16, {machine.name}\n"
        "(documented figures, not measured)",
    )
    axes.set_xticks(BATCHES, labels=map(str, BATCHES))
    axes.legend(fontsize=8)
    figure.savefig(options.out, dpi=150)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
