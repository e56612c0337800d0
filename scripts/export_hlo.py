#!/usr/bin/env python
"""Writes the graph that one rank runs, traced without weights: HLO proto, text and a JSON report.

  scripts/export_hlo.py --preset 27b --tp 8 --rank 0 --phase decode --capacity 4096 out/
  scripts/export_hlo.py --preset 27b --tp 8 --phase prefill --tokens 128 --dtype bfloat16 out/
  scripts/export_hlo.py --preset 27b --tp 8 --phase vision --tokens 1024 out/

OUT gets PHASE.hlo.pb (what `neuronx-cc compile --framework XLA` takes; it has not been fed to it
here), PHASE.hlo.txt and PHASE.json. Exit code 1: the graph breaks a rule of `qwen35.graphs.lint`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from qwen35 import Config, presets
from qwen35.graphs.export import PHASES, report, trace
from qwen35.sharding.mesh import Mesh


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--preset", choices=list(presets))
    model.add_argument("--model", metavar="DIR", help="directory with a config.json")
    parser.add_argument("--phase", choices=PHASES, required=True)
    parser.add_argument("--tp", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--rank", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--tokens", type=int, default=128, help="of a prefill step or frame; %(default)s"
    )
    parser.add_argument("--capacity", type=int, default=4096, help="of the KV cache; %(default)s")
    parser.add_argument("--batch", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("out", metavar="OUT", type=Path, help="directory to write to")
    options = parser.parse_args()
    try:
        config = (
            presets[options.preset] if options.preset else Config.from_pretrained(options.model)
        )
        graph = trace(
            config,
            options.phase,
            mesh=Mesh(tp=options.tp),
            rank=options.rank,
            tokens=options.tokens,
            capacity=options.capacity,
            batch=options.batch,
            dtype=options.dtype,
        )
    except ValueError as error:
        print(f"export_hlo: error: {error}", file=sys.stderr)
        return 2
    findings = graph.lint()
    content = report(graph) | {"lint": findings}
    options.out.mkdir(parents=True, exist_ok=True)
    files = {
        f"{options.phase}.hlo.pb": graph.proto,
        f"{options.phase}.hlo.txt": graph.text.encode(),
        f"{options.phase}.json": (json.dumps(content, indent=1) + "\n").encode(),
    }
    for name, data in files.items():
        (options.out / name).write_bytes(data)
        print(f"{options.out / name}: {len(data):,} bytes")
    for finding in findings:
        print(finding, file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
