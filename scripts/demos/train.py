#!/usr/bin/env python3
"""Train the demo checkpoints: a tiny Qwen3.5 hybrid that has memorised a few hundred facts, and
one with a vision tower that answers questions about drawn shapes.

    python scripts/demos/train.py text     [--output demo] [--seed 0] [--steps N] [--threads 1]
    python scripts/demos/train.py vision   [--output demo_vision] ...

Everything is made here: the texts (corpus.py), the pictures (drawing.py), the
tokenizers (tokenizer.py) and the weights, which are trained by torch's autograd through the
same functions that serve real checkpoints. Minutes on one core. A directory is written aside, and
takes the place of the old one only if the trained model answers as its check demands.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import text
import torch
import vision

ROOT = Path(__file__).resolve().parents[2]
RECIPES = {"text": (text, "demo"), "vision": (vision, "demo_vision")}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("demo", choices=RECIPES, help="which checkpoint")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: demo or demo_vision")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--steps", type=int, metavar="N", help="default: the recipe's")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="keep an unfinished training here, and go on with it",
    )
    options = parser.parse_args(argv)
    recipe, directory = RECIPES[options.demo]
    options.output = options.output or ROOT / directory
    options.steps = options.steps or recipe.STEPS
    torch.set_num_threads(options.threads)
    if not recipe.run(options):
        print("not good enough: nothing written; more --steps may help", file=sys.stderr)
        return 1
    print(f"written to {options.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
