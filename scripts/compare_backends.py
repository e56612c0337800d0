"""Times decode and prefill by XLA:CPU, inductor, eager torch and transformers: a process for each,
in alternation.

    scripts/compare_backends.py [--model DIR | --preset 0.8b] [--dtype float32 bfloat16]

Prints a Markdown table with the medians over the rounds. inductor needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from statistics import median

import alternation

from qwen35.bench import backends
from qwen35.bench.checkpoints import random_checkpoint
from qwen35.bench.processes import Job, alternate
from qwen35.checks.choices import DTYPES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a checkpoint directory; random weights if left out")
    parser.add_argument("--preset", default="0.8b", help="of the random weights")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--sides", nargs="+", choices=backends.SIDES, default=backends.SIDES)
    parser.add_argument("--length", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--steps", type=int, default=32, help="of decode")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        model = options.model
        if model is None:
            model = stack.enter_context(tempfile.TemporaryDirectory())
            random_checkpoint(options.preset, Path(model), vision=False)
        how = {"model": model, "length": options.length, "steps": options.steps}
        jobs = {
            f"{side} {dtype}": Job(backends.measure, {"side": side, "dtype": dtype, **how})
            for dtype in options.dtype
            for side in options.sides
        }
        results = alternate(jobs, rounds=options.rounds, threads=options.threads, say=_say)
    what = options.model or options.preset
    print(f"{alternation.processor()}, {what}, {options.threads} threads\n")
    print(f"| | decode, ms | prefill of {options.length}, ms | compilation, s |")
    print("|---|---|---|---|")
    for name, runs in results.items():
        step = 1e3 * median(run.decode for run in runs)
        prompt = 1e3 * median(run.prefill for run in runs)
        compiling = median(run.compile for run in runs)
        print(f"| {name} | {step:.1f} | {prompt:.0f} | {compiling:.1f} |")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
