"""`qwen35 export`: the graph of a step that one rank runs, for a compiler or a reader."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks.choices import DTYPES, EXPORTED, FP8
from .options import DTYPE_HELP, add_shared, config_from, positive

if TYPE_CHECKING:
    from ..graphs.export import Graph

SUMMARY = "write the graph that a rank runs, traced without weights"
HELP = """\
Write the graph that one rank runs, traced without weights.

  qwen35 export --preset 27b --tp 8 --phase decode --capacity 4096 OUT
  qwen35 export --preset 27b --tp 8 --phase prefill --tokens 128 OUT
  qwen35 export --preset 27b --tp 8 --phase vision --tokens 1024 OUT
  qwen35 export --preset 27b --tp 8 --phase engine --slots 8 OUT --chunks 32 128

OUT gets PHASE.hlo.pb (what `neuronx-cc compile --framework XLA` takes; it has not been fed to it
by this project), PHASE.hlo.txt, the same as a portable artifact of StableHLO in PHASE.stablehlo,
the constants that it takes as arguments in PHASE.captured.safetensors, and PHASE.json: every
parameter and output with its path in the parameters or the state, shape and dtype, and the
parameter whose memory an output takes; what the graph holds and costs; and the rules of
`qwen35.graphs.lint` that it breaks. If it breaks any, they are printed on standard error, and the
exit code is 1. Counts and costs, and the command that comes next, are printed too.

Weights of int8 and fp8 have scales for each output; fp8_blocks, the published form, has them for
blocks of 128 x 128.

Phases: prefill, prefill_images (the prompt's embeddings and positions are given), decode, and
vision, the tower on frames of one size. Logits are whole on every rank.

engine is all that an engine's warm-up compiles, each graph as a phase of its own (engine_decode,
engine_prefill_32, engine_choose_greedy, ...): a prefill for each of --chunks, decode and choice of
all slots, moving rows. Logits stay split over the ranks. A table, printed and in engine.json, has
each graph's instructions, collectives and bytes, and compares what a step exchanges with gathering
the logits.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `qwen35 export`."""
    option = parser.add_argument
    model = parser.add_mutually_exclusive_group(required=True)
    add_shared(model, "model", "preset")
    option("--phase", required=True, metavar="PHASE", help="see above")
    add_shared(parser, "dtype", choices=DTYPES, default="bfloat16", help=DTYPE_HELP)
    add_shared(parser, "weights", choices=EXPORTED)
    add_shared(parser, "head", choices=EXPORTED)
    option("--fp8", choices=FP8, default="e4m3",
           help="of weights in FP8: e4m3, up to 240, half of a file's values with twice their "
                "scales, which Trn1 and Trn2 multiply, or e4m3fn as in files, which Trn3 does; "
                "default: %(default)s")  # fmt: skip
    add_shared(parser, "tp", default=1)
    option("--rank", type=int, default=0, metavar="N", help="whose graph; default: %(default)s")
    option("--tokens", type=positive, default=128, metavar="N",
           help="of a row in a prefill step, or of a frame; default: %(default)s")  # fmt: skip
    add_shared(parser, "capacity", default=4096)
    add_shared(parser, "batch")
    option("--slots", type=positive, default=8, metavar="N",
           help="of the engine; default: %(default)s")  # fmt: skip
    option("--chunks", type=positive, nargs="+", metavar="N",
           help="of the engine: sizes of its prefill steps; default: the engine's own")  # fmt: skip
    option("out", metavar="OUT", help="directory to write to")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from ..graphs.export import PHASES, trace
    from ..sharding.mesh import Mesh

    phases = (*PHASES, "engine")
    if options.phase not in phases:
        raise ValueError(f"--phase must be one of {', '.join(phases)}, not {options.phase!r}")

    shared = {
        "mesh": Mesh(tp=options.tp),
        "rank": options.rank,
        "capacity": options.capacity,
        "dtype": options.dtype,
        "stablehlo": True,
    }
    directory = Path(options.out)
    if options.phase == "engine":
        if options.weights or options.head:
            raise ValueError("--weights and --head are for graphs of one step, not for an engine's")
        return _export_engine(options, directory, shared)
    graph = trace(
        config_from(options),
        options.phase,
        tokens=options.tokens,
        batch=options.batch,
        weights=options.weights,
        head=options.head,
        fp8=options.fp8,
        **shared,
    )
    return 1 if _write(directory, graph) else 0


def _export_engine(options: argparse.Namespace, directory: Path, shared: dict[str, Any]) -> int:
    """Writes every graph of an engine, and a report on all."""
    from ..generation import buckets
    from ..generation.engine_settings import EngineSettings
    from ..graphs.engine_graphs import describe_engine, render_engine, trace_engine

    usual = EngineSettings()
    chunks = options.chunks or buckets.parts(usual.prefill_chunk, usual.prefill_sizes)
    settings = {"slots": options.slots, "chunks": chunks}
    broken = []

    def written() -> Iterator[Graph]:
        for graph in trace_engine(config_from(options), **settings, **shared):
            broken.append(_write(directory, graph))
            yield graph

    report = describe_engine(written())
    _write_file(directory / "engine.json", (json.dumps(report, indent=1) + "\n").encode())
    print(render_engine(report))
    return 1 if any(broken) else 0


def _write(directory: Path, graph: Graph) -> bool:
    """Writes a graph's files, prints what rules it breaks and tells whether it breaks any."""
    from safetensors.torch import save

    from ..graphs.costs import count_costs
    from ..graphs.findings import render

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
    directory.mkdir(parents=True, exist_ok=True)
    for ending, data in files.items():
        _write_file(directory / f"{graph.phase}.{ending}", data)
    for finding in findings:
        print(finding, file=sys.stderr)
    if not graph.phase.startswith("engine_"):  # whose graphs are the rows of one table
        print(render(content, findings, str(directory / f"{graph.phase}.hlo.pb")))
    return bool(findings)


def _write_file(file: Path, data: bytes) -> None:
    from ..files import aside

    aside.write(file, data)
    print(f"{file}: {len(data):,} bytes")
