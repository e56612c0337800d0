"""`qwen35 convert`: a checkpoint's weights as they are to be loaded."""

from __future__ import annotations

import argparse
import sys

from ..checks.choices import DTYPES
from .options import add_shared

SUMMARY = "write a checkpoint's weights as they are to be loaded"
HELP = """\
Split a checkpoint into one file per rank, which loads with one sequential read; quantise it; or
merge a LoRA adapter into it.

  qwen35 convert --tp 8 IN OUT
  qwen35 convert --tp 8 --dtype float32 --no-vision IN OUT
  qwen35 convert --weights int4 IN OUT
  qwen35 convert --tp 8 --weights int4 --head int8 IN OUT
  qwen35 convert --adapter LORA IN OUT

OUT is a directory to load like any other; that of --tp with the same --tp and --dtype. Without --tp
quantised weights are in the form of compressed-tensors, which transformers reads, too, where that
library is installed; all else stays as it is in IN. Stopped, the command goes on when started
again; a file that has its final name is complete.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `qwen35 convert`."""
    option = parser.add_argument
    add_shared(parser, "tp", "head", "adapter")
    add_shared(parser, "weights")
    add_shared(parser, "dtype", choices=DTYPES, default=None,
               help="of weights and arithmetic; default: bfloat16")  # fmt: skip
    option("--no-vision", dest="vision", action="store_false", help="leave a vision tower out")
    option("source", metavar="IN", help="checkpoint directory, or a hub's name")
    option("out", metavar="OUT", help="directory to write to")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from ..files.compressing import compress
    from ..files.conversion import convert, merge

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if options.tp is None and options.weights is None and options.adapter is None:
        raise ValueError("--tp, --weights or --adapter says what to convert to")
    if options.tp is None and options.weights and options.adapter:
        raise ValueError("--adapter first, into a directory that --weights then converts; or --tp")
    if options.tp is None and options.dtype is not None:
        raise ValueError("--dtype is for --tp: without it, what stays dense keeps its own")
    if options.tp is None and options.weights and not options.vision:
        raise ValueError("--no-vision is for --tp: without it, a tower stays as it is")
    try:
        if options.tp is None and options.adapter is not None:
            merge(options.source, options.out, options.adapter, vision=options.vision)
        elif options.tp is None:
            compress(options.source, options.out, options.weights, head=options.head, report=report)
        else:
            convert(
                options.source,
                options.out,
                options.tp,
                dtype=options.dtype or "bfloat16",
                vision=None if options.vision else False,
                weights=options.weights,
                head=options.head,
                adapter=options.adapter,
                report=report,
            )
    except KeyboardInterrupt:
        print("\nstart it again to go on where it was", file=sys.stderr)
        raise
    return 0
