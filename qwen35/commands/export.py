"""`qwen35 export`: the graph of a step that one rank runs, for a compiler or a reader."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks.choices import DTYPES, EXPORTED, FP8, KERNELS
from .options import DTYPE_HELP, add_shared, config_from, positive

if TYPE_CHECKING:
    from ..graphs.export import Graph
    from ..graphs.export_check import Compared
    from ..model.config import Config

_SHOWN = 3  # faults of a phase; --json has all
SUMMARY = "write the graph that a rank runs, traced without weights"
HELP = """\
Write the graph that one rank runs, traced without weights.

  qwen35 export --preset 27b --tp 8 --phase decode --capacity 4096 OUT
  qwen35 export --preset 27b --tp 8 --phase prefill --tokens 128 OUT
  qwen35 export --preset 27b --tp 8 --phase vision --tokens 1024 OUT
  qwen35 export --preset 27b --tp 8 --phase engine --slots 8 OUT --chunks 32 128
  qwen35 export --preset 27b --tp 8 --phase decode --segments auto OUT
  qwen35 export --model DIR --dtype float32 --phase prefill,decode --capacity 512 --run OUT

OUT gets PHASE.hlo.pb (what `neuronx-cc compile --framework XLA` takes; it has not been fed to it
by this project), PHASE.hlo.txt, the same as a portable artifact of StableHLO in PHASE.stablehlo,
the constants that it takes as arguments in PHASE.captured.safetensors, and PHASE.json: every
parameter and output with its path in the parameters or the state, shape and dtype, the tensors of
the checkpoint that a parameter is put together from and each rank's slices of them, and the
parameter whose memory an output takes; what the graph holds and costs; and the rules of
`qwen35.graphs.lint` that it breaks. If it breaks any, they are printed on standard error, and the
exit code is 1. Counts and costs, and the command that comes next, are printed too.

With --run JAX's own XLA runs the files, with weights put together as PHASE.json says, on random
prompts: each phase goes on from the state of the one before. Where logits or states differ from the
model's by more than rounding, the exit code is 1.

Weights of int8 and fp8 have scales for each output; fp8_blocks, the published form, has them for
blocks of 128 x 128.

Phases, one or several with commas: prefill, prefill_images (the prompt's embeddings and positions
are given), decode, and vision, the tower on frames of one size. Logits are whole on every rank.

With --segments a step is cut into several graphs, PHASE_first, PHASE_run_0 and so on, PHASE_last,
each of which has its five files; what another phase has written already is taken from there.
PHASE.json lists the launches: which graph, and the parameters and outputs of each one at the paths
that it takes and gives, with "carry" and "around" for what passes from one to the next. A table,
printed and in PHASE.json, compares that with one graph. Of an engine the steps with layers are cut.

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
    add_shared(parser, "batch", "segments")
    option("--slots", type=positive, default=8, metavar="N",
           help="of the engine; default: %(default)s")  # fmt: skip
    option("--chunks", type=positive, nargs="+", metavar="N",
           help="of the engine: sizes of its prefill steps; default: the engine's own")  # fmt: skip
    option("--kernels", choices=KERNELS, default="portable",
           help="of DeltaNet layers: torch operations, or NKI kernels as custom calls, traced on a "
                "Neuron device with AWS's packages; default: %(default)s")  # fmt: skip
    option("--run", dest="in_jax", action="store_true",
           help="run the files in JAX's XLA, with the weights of --model, and compare with the "
                "model here; needs pip install 'qwen35[export-check]'")  # fmt: skip
    add_shared(parser, "json")
    option("out", metavar="OUT", help="directory to write to")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from ..graphs.export import PHASES, trace

    phases = options.phase.split(",")
    known = (*PHASES, "engine")
    for phase in phases:
        if phase not in known:
            raise ValueError(f"--phase must be one of {', '.join(known)}, not {phase!r}")
    engine = "engine" in phases
    if engine and len(phases) > 1:
        raise ValueError("--phase engine stands alone: it is graphs of all kinds")
    if engine and (options.weights or options.head):
        raise ValueError("--weights and --head are for graphs of one step, not for an engine's")
    if options.in_jax:
        _check_run(options, engine)

    written = _Written(Path(options.out), quiet=options.json)
    config, shared = config_from(options), _shared(options)
    if engine:
        _export_engine(options, config, shared, written)
    else:
        asked = {name: getattr(options, name)
                 for name in ("tokens", "batch", "weights", "head", "fp8")}  # fmt: skip
        for phase in dict.fromkeys(phases):
            if options.segments == 1:
                graph = trace(config, phase, **asked, **shared)
                written.add(graph)
                written.steps[phase] = graph
            else:
                _export_step(config, phase, options.segments, asked | shared, written)
    compared = _run_in_jax(options, written) if options.in_jax else []
    if options.json:
        from ..reports.page import plain

        ran = [dataclasses.asdict(one) for one in compared] if options.in_jax else None
        print(json.dumps(plain(written.described | {"run": ran})))
    return 1 if written.findings or any(one.faults for one in compared) else 0


def _shared(options: argparse.Namespace) -> dict[str, Any]:
    """What the graphs of a step and of an engine are traced with alike."""
    from ..sharding.mesh import Mesh

    return {
        "mesh": Mesh(tp=options.tp),
        "rank": options.rank,
        "capacity": options.capacity,
        "dtype": options.dtype,
        "kernels": options.kernels,
        "stablehlo": True,
    }


class _Written:
    """The graphs that a command has written, and what it says of them.

    Attributes:
        graphs: those with files of their own, by name.
        steps: each phase as one graph, whether or not it was written as one.
    """

    def __init__(self, directory: Path, *, quiet: bool) -> None:
        self.directory, self.quiet = directory, quiet
        self.graphs: dict[str, Graph] = {}
        self.steps: dict[str, Graph] = {}
        self.described: dict[str, Any] = {"graphs": {}}
        self.findings: list[str] = []

    def add(self, graph: Graph) -> None:
        """Writes a graph's files and prints what it costs and what rules it breaks."""
        from ..graphs.export_files import write_graph
        from ..graphs.findings import render

        content, files = write_graph(self.directory, graph)
        findings = content["lint"]
        self.graphs[graph.phase] = graph
        self.described["graphs"][graph.phase] = {"files": list(files), "lint": findings}
        self.findings += findings
        for finding in findings:
            print(finding, file=sys.stderr)
        for file, size in files.items():
            self.say(f"{file}: {size:,} bytes")
        if not graph.phase.startswith("engine_"):  # whose graphs are the rows of one table
            self.say(render(content, findings, str(self.directory / f"{graph.phase}.hlo.pb")))

    def add_table(self, name: str, files: Mapping[str, int]) -> None:
        """Takes note of files, by their bytes, that are of several graphs together."""
        self.described["graphs"][name] = {"files": list(files), "lint": []}
        for file, size in files.items():
            self.say(f"{file}: {size:,} bytes")

    def say(self, text: str) -> None:
        """Prints a text for a reader, where standard output is not for a program."""
        if not self.quiet:
            print(text)

    def add_launches(self, whole: Graph, launches: Sequence[Graph]) -> dict[str, Any]:
        """Writes the graphs that a step is cut into, but those that are there already, and how they
        are launched; returns what that costs beside the `whole`."""
        from ..graphs.export_files import write_launches
        from ..graphs.launch_costs import count_launches, distinct, with_known_names

        launches = with_known_names(launches, self.graphs)
        for name, graph in distinct(launches).items():
            if name not in self.graphs:
                self.add(graph)
        counted = count_launches(launches, whole)
        files = write_launches(self.directory, whole.phase, launches, counted)
        self.add_table(whole.phase, files)
        self.steps[whole.phase] = whole
        self.described.setdefault("segments", {})[whole.phase] = counted
        return counted


def _export_step(
    config: Config, phase: str, segments: int | str, asked: dict[str, Any], written: _Written
) -> None:
    """Writes the graphs that a step is cut into, each once, and how they are launched."""
    from ..graphs.export import trace, trace_launches
    from ..graphs.launch_costs import render

    launches = trace_launches(config, phase, segments=segments, **asked)
    whole = trace(config, phase, **asked | {"stablehlo": False})
    written.say(render({phase: written.add_launches(whole, launches)}))


def _export_engine(
    options: argparse.Namespace, config: Config, shared: dict[str, Any], written: _Written
) -> None:
    """Writes every graph of an engine, or those that it is cut into, and a report on all."""
    from ..files import aside
    from ..graphs.engine_graphs import describe_engine, render_engine
    from ..graphs.export_files import as_text
    from ..graphs.launch_costs import render

    shapes = shared | {"slots": options.slots, "chunks": _chunks(options)}
    counted: dict[str, Any] = {}

    def traced() -> Iterator[Graph]:
        for whole, launches in _engine_steps(config, options.segments, shapes):
            if launches:
                counted[whole.phase] = written.add_launches(whole, launches)
            else:
                written.add(whole)
            yield whole

    report = describe_engine(traced())
    if counted:
        report["segments"] = counted
    file, text = written.directory / "engine.json", as_text(report)
    aside.write(file, text)
    written.add_table("engine", {str(file): len(text)})
    written.say(render_engine(report))
    if counted:
        written.say(render(counted))


def _engine_steps(
    config: Config, segments: int | str, shapes: dict[str, Any]
) -> Iterator[tuple[Graph, list[Graph]]]:
    """Traces each step of an engine, and what it is cut into, if it is."""
    from ..graphs.engine_graphs import trace_engine, trace_engine_launches

    if segments != 1:
        return trace_engine_launches(config, segments=segments, **shapes)
    return ((whole, []) for whole in trace_engine(config, **shapes))


def _chunks(options: argparse.Namespace) -> Sequence[int]:
    """Returns the sizes of an engine's prefill steps."""
    from ..generation import buckets
    from ..generation.engine_settings import EngineSettings

    usual = EngineSettings()
    return options.chunks or buckets.parts(usual.prefill_chunk, usual.prefill_sizes)


def _check_run(options: argparse.Namespace, engine: bool) -> None:
    """Raises a ValueError where --run can't be had, before anything is traced."""
    from ..checks import hub
    from ..files.checkpoint_files import CheckpointFiles
    from ..files.presharded import is_presharded
    from ..graphs.export_check import require_jax

    if options.kernels != "portable":
        raise ValueError("--run is in JAX's XLA, which has no NKI kernels to call: export for it "
                         "with --kernels portable")  # fmt: skip
    if options.model is None:
        raise ValueError("--run needs the weights of a checkpoint: --model, not --preset")
    if options.weights or options.head:
        raise ValueError("--run puts dense weights together, not those of --weights and --head")
    if engine and options.tp > 1:
        raise ValueError("--run of an engine is for --tp 1: its slots' states differ by rank")
    require_jax()
    directory = hub.directory_of(options.model)
    if is_presharded(directory):
        raise ValueError(f"{directory} has a rank's tensors in a file: --run reads whole ones")
    if CheckpointFiles(directory, tower=False, sparse=True).scheme is not None:
        raise ValueError(f"{directory} is quantised: --run reads dense weights")


def _run_in_jax(options: argparse.Namespace, written: _Written) -> list[Compared]:
    """Runs what was written in JAX's XLA, and prints how that compares with the model here."""
    from ..checks import hub
    from ..files.checkpoint import load
    from ..graphs.engine_calls import engine_calls_of
    from ..graphs.export_calls import calls_of
    from ..graphs.export_check import compare, render
    from ..model.params import Runtime

    directory = hub.directory_of(options.model)
    runtime = Runtime(forms="plain", kernels="portable")
    params = load(directory, dtype=options.dtype, runtime=runtime, progress=True)
    if options.phase == "engine":
        sizes = {"slots": options.slots, "chunks": _chunks(options), "capacity": options.capacity}
        calls = engine_calls_of(params, **sizes)
    else:
        sizes = {"tokens": options.tokens, "batch": options.batch, "capacity": options.capacity}
        calls = calls_of(params, written.steps, **sizes)
    compared = compare(
        written.directory,
        directory,
        calls,
        ranks=options.tp,
        dtype=options.dtype,
        progress=not options.json,
    )
    for one in compared:
        for fault in one.faults[:_SHOWN]:
            print(fault, file=sys.stderr)
        if len(one.faults) > _SHOWN:
            print(f"and {len(one.faults) - _SHOWN} more of {one.phase}", file=sys.stderr)
    written.say(render(compared))
    return compared
