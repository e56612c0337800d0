"""`qwen35 export`: the graph of a step that one rank runs, for a compiler or a reader."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .options import DTYPE_HELP, DTYPES, add_shared, config_from, positive

SUMMARY = "write the graph that a rank runs, traced without weights"
HELP = """\
Write the graph that one rank runs, traced without weights.

  qwen35 export --preset 27b --tp 8 --phase decode --capacity 4096 OUT
  qwen35 export --preset 27b --tp 8 --phase prefill --tokens 128 OUT
  qwen35 export --preset 27b --tp 8 --phase vision --tokens 1024 OUT

OUT gets PHASE.hlo.pb (what `neuronx-cc compile --framework XLA` takes; it has not been fed to it
by this project), PHASE.hlo.txt, the same as a portable artifact of StableHLO in PHASE.stablehlo,
the constants that it takes as arguments in PHASE.captured.safetensors, and PHASE.json: every
parameter and output with its path in the parameters or the state, shape and dtype, and the
parameter whose memory an output takes; what the graph holds and costs; and the rules of
`qwen35.graphs.lint` that it breaks. If it breaks any, they are printed, and the exit code is 1.

Phases: prefill, prefill_images (the prompt's embeddings and positions are given), decode, and
vision, the tower on frames of one size.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `qwen35 export`."""
    option = parser.add_argument
    model = parser.add_mutually_exclusive_group(required=True)
    add_shared(model, "model", "preset")
    option("--phase", required=True, metavar="PHASE", help="see above")
    add_shared(parser, "dtype", choices=DTYPES, default="bfloat16", help=DTYPE_HELP)
    add_shared(parser, "tp", default=1)
    option("--rank", type=int, default=0, metavar="N", help="whose graph; default: %(default)s")
    option("--tokens", type=positive, default=128, metavar="N",
           help="of a row in a prefill step, or of a frame; default: %(default)s")  # fmt: skip
    add_shared(parser, "capacity", default=4096)
    add_shared(parser, "batch")
    option("out", metavar="OUT", help="directory to write to")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from safetensors.torch import save

    from ..files import aside
    from ..graphs.export import count_costs, trace
    from ..sharding.mesh import Mesh

    graph = trace(
        config_from(options),
        options.phase,
        mesh=Mesh(tp=options.tp),
        rank=options.rank,
        tokens=options.tokens,
        capacity=options.capacity,
        batch=options.batch,
        dtype=options.dtype,
        stablehlo=True,
    )
    findings = graph.lint()
    content = graph.signature | count_costs(graph) | {"lint": findings}
    captured = {f"captured[{index}]": tensor for index, tensor in enumerate(graph.captured)}
    files = {
        "hlo.pb": graph.proto,
        "hlo.txt": graph.text.encode(),
        "stablehlo": graph.stablehlo,
        "captured.safetensors": save(captured),
        "json": (json.dumps(content, indent=1) + "\n").encode(),
    }
    directory = Path(options.out)
    directory.mkdir(parents=True, exist_ok=True)
    for ending, data in files.items():
        file = directory / f"{options.phase}.{ending}"
        aside.write(file, data)
        print(f"{file}: {len(data):,} bytes")
    for finding in findings:
        print(finding, file=sys.stderr)
    return 1 if findings else 0
