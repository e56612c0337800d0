#!/usr/bin/env python
"""What a prefill costs per chunk and value head if the machine is not as its published costs say.

    python scripts/kernels/sensitivity.py

Estimated times of gated_delta_prefill on the 27B layer at TP=4, growth from 4 to 8 chunks, so that
start-up is left out: with GpSimd at once, twice and four times the cycles that the cost model gives
it, with all elementwise work on VectorE, and with a fixed time per instruction. Modelled figures,
never measured ones.
"""

import argparse

from qwen35.kernels import emulator, oracle
from qwen35.reports.tables import markdown_table

KEY_HEADS, GROUP = 4, 3  # of a rank of four
CHUNKS = (4, 8)
# Nanoseconds that a third party's model of trn2 charges for each instruction beside its cycles; of
# GpSimd it has none, so VectorE's stands in.
FIXED_NS = {"tensor": 231.0, "vector": 430.0, "scalar": 320.0, "gpsimd": 430.0}
CASES = {
    # name: (gpsimd, what the published costs leave open)
    "published costs": (True, emulator.Costs()),
    "GpSimd takes twice as long": (True, emulator.Costs(gpsimd=2.0)),
    "four times as long": (True, emulator.Costs(gpsimd=4.0)),
    "all elementwise work on VectorE": (False, emulator.Costs()),
    "a fixed time per instruction": (True, emulator.Costs(fixed_ns=FIXED_NS)),
    "that, and all on VectorE": (False, emulator.Costs(fixed_ns=FIXED_NS)),
}


def reports(exact: bool, gpsimd: bool) -> list:
    """The runs of four and of eight chunks."""
    kernel = emulator.load("nki_fused", "gated_delta_prefill")
    return [
        emulator.simulate(
            kernel,
            *oracle.inputs(tokens=128 * chunks, key_heads=KEY_HEADS, group=GROUP),
            exact=exact,
            gpsimd=gpsimd,
        ).report
        for chunks in CHUNKS
    ]


def per_chunk_head(figures: list[float]) -> float:
    """Growth from four to eight chunks, of one chunk and value head."""
    return (figures[1] - figures[0]) / ((CHUNKS[1] - CHUNKS[0]) * KEY_HEADS * GROUP)


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    runs = {
        (exact, gpsimd): reports(exact, gpsimd)
        for exact in (True, False)
        for gpsimd in (True, False)
    }
    rows = []
    for name, (gpsimd, costs) in CASES.items():
        times = [
            per_chunk_head([report.estimate_ns(costs) for report in runs[exact, gpsimd]]) / 1000
            for exact in (True, False)
        ]
        rows.append((name, *(f"{time:.2f} µs" for time in times)))
    print(markdown_table(("per chunk and value head", "float32", "16 bits"), rows, left=(0,)))
    for exact, name in ((True, "float32"), (False, "16 bits")):
        counts = {
            engine: per_chunk_head([r.instructions[engine] for r in runs[exact, True]])
            for engine in ("tensor", "vector", "scalar", "gpsimd", "dma")
        }
        total = sum(counts.values())
        each = ", ".join(f"{engine} {count:.1f}" for engine, count in counts.items())
        print(f"instructions, {name}: {total:.1f} ({each})")


if __name__ == "__main__":
    main()
