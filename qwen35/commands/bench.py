"""`qwen35 bench`: the benchmarks from the command line."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

HELP = """\
Time this project and transformers on the same weights, one after the other in processes of their
own, in alternation. Results go to standard output; --output writes them as JSON and as a Markdown
page with plots.

  qwen35 bench                                  everything, on random weights of the 0.8B geometry
  qwen35 bench ttft tpot --model DIR            two parts, of a checkpoint
  qwen35 bench throughput --slots 1 8 --alone   the engine; nothing of transformers
  qwen35 bench images --sides 512 1024 --output report

Parts:
  ttft        time to first token over prompt lengths
  tpot        time per output token over contexts, and over rows of a batch
  throughput  the engine: tokens per second over slots; requests that arrive at random (Poisson)
  prefix      time to first token with the prefix cache, and without
  memory      of a process that decodes
  images      vision tower, first token of an image prompt, memory, compile time of the ladder

Everything at once takes most of an hour on two cores: choose parts, or fewer --rounds. A machine
that does something else meanwhile gives figures that mean little; look at the spread.

On Trainium --device neuron runs another protocol in place of the parts, the one that published
figures of other ports follow: 128 tokens of prompt, batch 1, bfloat16, medians. It needs a Neuron
device, and has not been run on one by this project.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `qwen35 bench`."""
    parser.set_defaults(run=_bench)
    option = parser.add_argument
    option("parts", nargs="*", metavar="PART", help="see above; default: all that the model has")
    option("--model", metavar="DIR", help="checkpoint directory; default: random weights")
    option("--preset", default="0.8b", help="geometry of the random weights; default: %(default)s")
    option("--device", choices=("xla", "neuron"), default="xla", help="default: %(default)s")
    option("--alone", action="store_true", help="leave transformers out")
    option("--rounds", type=int, default=3, metavar="N", help="alternations; default: %(default)s")
    option("--threads", type=int, default=2, metavar="N", help="default: %(default)s")
    for name, kind, default, text in (
        ("lengths", int, None, "tokens of prompts; default: 128 512 2048"),
        ("contexts", int, None, "tokens before a decode step; default: 128 2048 8192 32768"),
        ("batches", int, None, "rows of a decode step; default: 1 2 4 8"),
        ("slots", int, None, "of the engine; default: 1 2 4 8"),
        ("loads", float, None, "arrivals, as shares of the most; default: 0.5 0.8"),
        ("sides", int, None, "pixels of pictures; default: 512 1024"),
    ):
        option(f"--{name}", type=kind, nargs="+", default=default, metavar="N", help=text)
    option("--steps", type=int, metavar="N", help="of decode that are timed; default: 32")
    option("--requests", type=int, metavar="N", help="that arrive; default: 24")
    option("--request-tokens", type=int, nargs=2, metavar=("PROMPT", "NEW"),
           help="the most of each; default: 128 32")  # fmt: skip
    option("--prefix", type=int, nargs=2, metavar=("SHARED", "OWN"),
           help="tokens that prompts share, and that follow; default: 2000 16")  # fmt: skip
    option("--large-side", type=int, metavar="N",
           help="pixels of the picture for memory and the ladder; default: 2048")  # fmt: skip
    option("--seed", type=int, metavar="S", help="of arrivals and requests; default: 0")
    option("--tp", type=int, default=1, metavar="N",
           help="ranks of --device neuron, under torchrun; default: %(default)s")  # fmt: skip
    option("--timeout", type=float, default=60.0, metavar="S",
           help="seconds that a rank waits for the others; default: %(default)s")  # fmt: skip
    option("--json", action="store_true", help="print one JSON object instead of tables")
    option("--output", metavar="DIR", help="write the report into this directory")


def _bench(options: argparse.Namespace) -> int:
    if options.device == "neuron":
        from ..bench.neuron import bench

        return bench(options)
    from ..bench.checkpoints import random_checkpoint
    from ..bench.suite import PARTS, Settings, check, measure, plots, render
    from ..model.config import Config
    from ..model.presets import presets

    if options.model is None and options.preset not in presets:
        raise ValueError(f"no preset {options.preset!r}; presets: {', '.join(presets)}")
    config = (
        presets[options.preset] if options.model is None else Config.from_pretrained(options.model)
    )
    parts = tuple(options.parts)
    if not parts:
        parts = tuple(part for part in PARTS if part != "images" or config.vision is not None)
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(options).items()
        if name in Settings.__dataclass_fields__ and value is not None
    }
    settings = Settings(**given | {"parts": parts, "reference": not options.alone})
    check(config, settings)
    with tempfile.TemporaryDirectory(prefix="qwen35-bench-") as scratch:
        directory, name = options.model, options.model
        if directory is None:
            directory, name = scratch, f"{options.preset}, random weights"
            say(f"making random weights of {options.preset}")
            random_checkpoint(options.preset, Path(scratch), vision="images" in parts)
        result = measure(directory, name, settings, say)
    text = render(result)
    print(json.dumps(result, ensure_ascii=False) if options.json else text)
    if options.output is not None:
        from ..report import write_report

        page, drawn = write_report(
            options.output, "bench", "Benchmark", result, text, plots(result)
        )
        missing = "" if drawn else " (without plots: matplotlib is not installed)"
        say(f"wrote {page} and {page.with_suffix('.json').name}{missing}")
    return 0


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
