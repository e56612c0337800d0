"""`qwen35 bench`: the benchmarks from the command line."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..sharding.torchrun import launched
from .loading import model_name
from .options import add_shared, config_from, positive
from .output import make_output, write_output

if TYPE_CHECKING:
    from .launch import Launch

SUMMARY = "time this project and transformers side by side"

HELP = """\
Time this project and transformers on the same weights, one after the other in processes of their
own, in alternation.

  qwen35 bench                                  everything, on random weights of the 0.8B geometry
  qwen35 bench ttft tpot --model DIR            two parts, of a checkpoint
  qwen35 bench throughput --slots 1 8 --alone   the engine; nothing of transformers
  qwen35 bench tpot --weights int8 --head int8  quantised here, float32 of transformers
  qwen35 bench tpot --model DIR --adapter LORA  both sides with the adapter merged into DIR
  qwen35 bench images --sides 512 1024 --output report

Parts:
  ttft        time to first token over prompt lengths
  tpot        time per output token over contexts, and over rows of a batch
  throughput  the engine: tokens per second over slots; requests that arrive at random (Poisson)
  prefix      time to first token with the prefix cache, and without
  host        what an engine's step costs the host, and what starting it ahead gains
  memory      of a process that decodes
  compile     models of many narrow layers: time to compile them, the host's time for a step
  images      vision tower, first token of an image prompt, memory, compile time by size

Everything at once takes most of an hour on two cores: choose parts, or fewer --rounds. A machine
that does something else meanwhile gives figures that mean little; look at the spread.

--tp N splits this project's model over N ranks: virtual devices of XLA:CPU that share the threads,
or processes of torchrun, on CPU tensors, each with --threads of its own; --dp N has replicas do the
same at the same time, and times the first. memory and compile are of one XLA device, host of some.

  qwen35 bench host --tp 4 --alone              the host's work at tp 4, over that at tp 1
  torchrun --nproc-per-node 4 -m qwen35 bench throughput --model DIR --tp 2 --dp 2 --threads 4

On Trainium --device neuron runs another protocol in place of the parts, the one that published
figures of other ports follow: 128 tokens of prompt, batch 1, bfloat16, medians. It takes --model or
--preset, --tp (under torchrun), --timeout, --json and --output. It needs a Neuron device, and has
not been run on one by this project.

  torchrun --nproc-per-node 8 -m qwen35 bench --device neuron --model DIR --tp 8
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `qwen35 bench`."""
    option = parser.add_argument
    option("parts", nargs="*", metavar="PART", help="see above; default: all that the model has")
    add_shared(parser, "model")
    add_shared(parser, "preset", default="0.8b")
    add_shared(parser, "weights", "head", "adapter", "segments")
    add_shared(parser, "device", help="xla compiles (default), cpu runs plain torch operations "
               "(default under torchrun); neuron: another protocol, see above")  # fmt: skip
    option("--alone", action="store_true", help="leave transformers out")
    option("--rounds", type=positive, default=3, metavar="N",
           help="alternations; default: %(default)s")  # fmt: skip
    option("--threads", type=positive, default=2, metavar="N",
           help="of torch and XLA; default: %(default)s")  # fmt: skip
    for name, kind, text in (
        ("lengths", positive, "tokens of prompts; default: 128 512 2048"),
        ("contexts", positive, "tokens before a decode step; default: 128 2048 8192 32768"),
        ("batches", positive, "rows of a decode step; default: 1 2 4 8"),
        ("slots", positive, "of the engine; default: 1 2 4 8"),
        ("loads", float, "arrivals, as shares of the most; default: 0.5 0.8"),
        ("layers", positive, "of the models that are compiled; default: 24 64"),
        ("sides", positive, "pixels of pictures; default: 512 1024"),
    ):
        option(f"--{name}", type=kind, nargs="+", metavar="N", help=text)
    option("--steps", type=positive, metavar="N", help="of decode that are timed; default: 32")
    option("--requests", type=positive, metavar="N", help="that arrive; default: 24")
    option("--request-tokens", type=positive, nargs=2, metavar=("PROMPT", "NEW"),
           help="the most of each; default: 128 32")  # fmt: skip
    option("--prefix-tokens", type=positive, nargs=2, metavar=("SHARED", "OWN"),
           help="tokens that prompts share, and that follow; default: 2000 16")  # fmt: skip
    option("--large-side", type=positive, metavar="N",
           help="pixels of the picture for memory and compilation; default: 2048")  # fmt: skip
    add_shared(parser, "seed")
    add_shared(parser, "tp", default=1)
    add_shared(parser, "dp", "timeout", "json", "output")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    if options.adapter is not None and options.model is None:
        raise ValueError("--adapter is of a checkpoint: random weights of a --preset have none")
    if options.device == "neuron":
        if options.parts:
            raise ValueError(f"--device neuron has no parts, such as {options.parts[0]}")
        if options.weights or options.head or options.dp > 1:
            raise ValueError("--weights, --head and --dp are for parts: --device neuron has none")
        _bench_neuron(options)
    elif launched():
        from ..sharding.process import UNLIMITED
        from .launch import launch

        # This process waits for measurements, whose processes have the timeout.
        ways = {"tp": options.tp, "dp": options.dp, "timeout": UNLIMITED}
        with launch(argparse.Namespace(**ways), "cpu") as ranks:
            _bench_parts(options, ranks)
    else:
        _bench_parts(options, None)
    return 0


def _bench_parts(options: argparse.Namespace, ranks: Launch | None) -> None:
    """Measures, and writes what came of it in the process that prints.

    Args:
        ranks: the processes of torchrun, if that has started this one.
    """
    from ..bench.settings import Settings
    from ..bench.suite import PARTS, check, impossible, measure, plots, render
    from ..sharding.launch import check_one_process
    from ..sharding.mesh import Mesh

    config = config_from(options)
    device = options.device or ("xla" if ranks is None else "cpu")
    parts = tuple(options.parts)
    if not parts:
        left_out = impossible(config, options.tp * options.dp, device)
        parts = tuple(part for part in PARTS if part not in left_out)
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(options).items()
        if name in Settings.__dataclass_fields__ and value is not None
    }
    changed = {"parts": parts, "device": device, "reference": not options.alone}
    settings = Settings(**given | changed)
    check(config, settings)
    if ranks is None:
        check_one_process(Mesh(tp=options.tp), settings.device)
        if options.dp > 1:
            raise ValueError(
                f"--dp {options.dp}: replicas are measured in processes of their own: torchrun "
                f"--nproc-per-node {options.dp * options.tp} -m qwen35 bench ..."
            )
    make_output(options)
    rank = None if ranks is None else ranks.runtime.rank
    with tempfile.TemporaryDirectory(prefix="qwen35-bench-") as scratch:
        directory = options.model
        if directory is None or options.adapter is not None:
            directory = _made(options, "images" in parts, scratch, ranks)
        tell = say if ranks is None or ranks.prints else _silent
        result = measure(directory, _name(options), settings, tell, rank)
    if result is not None:
        write_output(options, "bench", "Benchmark", result, render(result), plots(result))


def _made(options: argparse.Namespace, vision: bool, scratch: str, ranks: Launch | None) -> str:
    """Writes the checkpoint that is measured where there is none yet, and returns its directory.

    Raises:
        ValueError: other ranks are on other machines.
    """
    from ..bench.checkpoints import random_checkpoint
    from ..files.conversion import merge
    from ..sharding.process import from_rank_0

    if ranks is not None:
        if os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
            raise ValueError(
                "random weights and merged ones are written on one machine, and ranks are on "
                "several: give a --model that each has, without --adapter"
            )
        scratch = from_rank_0(scratch)

    def make() -> None:
        if ranks is not None and not ranks.prints:
            return
        if options.model is None:
            say(f"making random weights of {options.preset}")
            random_checkpoint(options.preset, Path(scratch), vision=vision)
        else:
            say(f"merging {options.adapter}")
            merge(options.model, scratch, options.adapter)

    make() if ranks is None else ranks.on_all_ranks(make)
    return scratch


def _bench_neuron(options: argparse.Namespace) -> None:
    from ..bench.neuron import measure, render
    from ..model.segments import check_cut
    from .launch import launch

    config = config_from(options)
    check_cut(config.layer_types, options.segments)
    with launch(options, "neuron") as ranks:
        make_output(options)
        result = measure(
            config if options.model is None else options.model,
            _name(options),
            adapter=options.adapter,
            runtime=ranks.runtime,
            progress=ranks.prints,
        )
        if ranks.prints:
            write_output(options, "bench", "Benchmark on Neuron", result, render(result), {})


def _name(options: argparse.Namespace) -> str:
    """Returns what the report calls the model."""
    return f"{options.preset}, random weights" if options.model is None else model_name(options)


def say(text: str) -> None:
    """Tells of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    """Tells nothing: another rank does."""
