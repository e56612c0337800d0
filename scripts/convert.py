#!/usr/bin/env python
"""Splits a checkpoint into one file per rank, which loads with one sequential read.

  scripts/convert.py --tp 8 IN OUT

OUT is a directory to load like any other, with the same --tp. Stopped, it goes on when started
again; a file that has its final name is complete.
"""

from __future__ import annotations

import argparse
import sys

from qwen35.files.conversion import convert


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tp", type=int, required=True, help="ranks to split for")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument(
        "--no-vision", dest="vision", action="store_false", help="leave a vision tower out"
    )
    parser.add_argument("source", metavar="IN", help="checkpoint directory")
    parser.add_argument("out", metavar="OUT", help="directory to write to")
    options = parser.parse_args()
    try:
        convert(
            options.source,
            options.out,
            options.tp,
            dtype=options.dtype,
            vision=options.vision,
            report=print,
        )
    except (ValueError, OSError) as error:
        print(f"convert: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nconvert: interrupted; start it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
