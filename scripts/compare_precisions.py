"""Times a model in several precisions: the same steps in one process, in alternation.

    scripts/compare_precisions.py float32 bfloat16 int8 int4 fp8 [--preset 0.8b] [--layers 4]

Each row has the medians of all, and the median of the rounds' ratios to the first: above 1 is
faster. Weights are random. Of int8, int4 and fp8 activations are float32, and the head is
quantised as the layers are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import alternation

import qwen35
from qwen35.xla.trees import tensors

DENSE, QUANTISED = ("float32", "bfloat16"), ("int8", "int4", "fp8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("precisions", nargs="+", choices=DENSE + QUANTISED)
    parser.add_argument("--preset", default="0.8b")
    parser.add_argument("--layers", type=int, help="of the model; all of them if left out")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    options = parser.parse_args()
    config = alternation.cut(qwen35.presets[options.preset].text_only(), options.layers)
    print(f"{alternation.processor()}, {config.num_hidden_layers} layers of {options.preset}")
    sides = {}
    with tempfile.TemporaryDirectory() as directory:
        if set(options.precisions) & set(QUANTISED):
            qwen35.save(qwen35.init_params(config, dtype="bfloat16"), directory)
        for name in options.precisions:
            params = made(config, name, Path(directory))
            size = sum(tensor.nbytes for tensor in tensors(params))
            state = sum(tensor.nbytes for tensor in tensors(qwen35.init_state(params, 1, 4096)))
            print(f"{name}: weights {size / 1e6:.0f} MB, state of 4096 tokens {state / 1e6:.1f} MB")
            sides[name] = alternation.prepared(qwen35, params)
    for row in alternation.alternate(sides, options.rounds, options.only):
        cells = (f"{n} {1e3 * s:.1f} ms ({row.ratios[n]:.2f})" for n, s in row.seconds.items())
        print(f"{row.name:<16}" + ", ".join(cells), flush=True)
    return 0


def made(config: qwen35.Config, name: str, directory: Path) -> qwen35.Params:
    """Random parameters of a precision; quantised ones are those of a directory, as it is read."""
    if name in DENSE:
        return qwen35.init_params(config, dtype=name, device="xla")
    return qwen35.load(directory, dtype="float32", device="xla", weights=name, head=name)


if __name__ == "__main__":
    sys.exit(main())
