"""`qwen35 convert`: a checkpoint's weights as they are to be loaded."""

from __future__ import annotations

import argparse
import sys

from .options import DTYPE_HELP, DTYPES, add_shared

SUMMARY = "write a checkpoint's weights as they are to be loaded"
HELP = """\
Split a checkpoint into one file per rank, which loads with one sequential read.

  qwen35 convert --tp 8 IN OUT
  qwen35 convert --tp 8 --dtype float32 --no-vision IN OUT

OUT is a directory to load like any other, with the same --tp and --dtype. Stopped, the command
goes on when started again; a file that has its final name is complete.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `qwen35 convert`."""
    option = parser.add_argument
    add_shared(parser, "tp", required=True)
    add_shared(parser, "dtype", choices=DTYPES, default="bfloat16", help=DTYPE_HELP)
    option("--no-vision", dest="vision", action="store_false", help="leave a vision tower out")
    option("source", metavar="IN", help="checkpoint directory")
    option("out", metavar="OUT", help="directory to write to")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from ..files.conversion import convert

    try:
        convert(
            options.source,
            options.out,
            options.tp,
            dtype=options.dtype,
            vision=options.vision,
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except KeyboardInterrupt:
        print("\nstart it again to go on where it was", file=sys.stderr)
        raise
    return 0
