"""Times steps cut into runs of layers against steps of one graph, in alternation.

    scripts/compare_segments.py [--preset 0.8b] [--segments auto] [--rounds 7]

First compilation of models of many narrow layers, prefill and decode, each side in a process of its
own, and what a call of their decode step takes the host. Then, in one process, the steps of the
preset with random weights: decode, prefill, and where it has a tower a picture. Ratios are one
graph's time over the other's, medians over the rounds: above 1 the cut steps are faster.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median

import alternation

import qwen35
from qwen35.bench import text
from qwen35.bench.processes import Job, alternate
from qwen35.checks.choices import DTYPES
from qwen35.commands.options import segments


def main() -> None:
    """Parses the command line, times, prints tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="0.8b", help="of the random weights")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--segments", type=segments, default="auto", help="of the other side")
    parser.add_argument("--layers", type=int, nargs="*", default=[24, 64], help="of narrow models")
    parser.add_argument("--rounds", type=int, default=7, help="of steps")
    parser.add_argument("--compilations", type=int, default=3, help="rounds of these")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="of the steps, those whose name holds this")
    parser.add_argument("--cut", type=int, metavar="N", help="the preset's first N layers alone")
    options = parser.parse_args()
    sides = {"one graph": 1, f"segments {options.segments}": options.segments}
    print(f"{alternation.processor()}, {options.threads} threads")
    if options.layers:
        compare_compilation(sides, options)
    compare_steps(sides, options)


def compare_compilation(sides: dict[str, int | str], options: argparse.Namespace) -> None:
    """Prints seconds to compile narrow models, and milliseconds of a call of their decode step."""
    jobs = {
        name: Job(text.measure_compilation, {"layers": options.layers, "segments": count})
        for name, count in sides.items()
    }
    found = alternate(jobs, rounds=options.compilations, threads=options.threads, say=_say)
    print("\n| narrow layers | | compile prefill, s | decode, s | both, s | call of decode, ms |")
    print("|---|---|---|---|---|---|")
    for number, layers in enumerate(options.layers):
        for name, rounds in found.items():
            models = [record.models[number] for record in rounds]
            prefill = median(model.compile_prefill for model in models)
            decode = median(model.compile_decode for model in models)
            both = median(model.compile_prefill + model.compile_decode for model in models)
            call = 1e3 * median(model.host for model in models)
            print(f"| {layers} | {name} | {prefill:.2f} | {decode:.2f} | {both:.2f} | {call:.2f} |")


def compare_steps(sides: dict[str, int | str], options: argparse.Namespace) -> None:
    """Prints milliseconds of steps, and the ratios of one graph's time to the others'."""
    config = alternation.cut(qwen35.presets[options.preset], options.cut)
    params = qwen35.init_params(config, dtype=options.dtype, device="xla")
    steps = {
        name: alternation.prepared(qwen35, params.with_runtime(segments=count))
        for name, count in sides.items()
    }
    print(f"\n| {options.preset}, {options.dtype} | {' | '.join(steps)}, ms | ratio |")
    print("|---|---|---|---|")
    other = list(steps)[-1]
    for row in alternation.alternate(steps, options.rounds, options.only):
        times = " | ".join(f"{1e3 * row.seconds[name]:.2f}" for name in steps)
        print(f"| {row.name} | {times} | {row.ratios[other]:.3f} |", flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
