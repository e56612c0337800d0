"""`qwen35 info`: a model's sizes, what a rank holds, floors of its times."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks.choices import DTYPES
from .options import DTYPE_HELP, add_shared, positive

if TYPE_CHECKING:
    from ..model.config import Config

SUMMARY = "print a model's sizes, without its weights"
HELP = """\
Print what a model comes to: layers, parameters by kind, bytes of weights, of state per sequence
and of KV cache per token, and which instances hold it. Takes a checkpoint directory or a preset.

  qwen35 info demo
  qwen35 info 27b --dtype bfloat16 --json
  qwen35 info 27b --tp 8                    what each rank holds
  qwen35 info 27b --tp 8 --hardware trn2    and floors of TTFT and TPOT
  qwen35 info 27b --weights int4 --head int8   quantised as it is loaded
  qwen35 info 27b --tp 4 --context 1000000  what a million tokens cost, and how they are reached
  qwen35 info 27b --tp 4 --slots 8 --context 32768   what an engine takes, refused if it can't fit
  qwen35 info 27b --tp 4 --graphs           all that `generate` and an engine ever compile
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `qwen35 info`."""
    option = parser.add_argument
    option("model", metavar="DIR|PRESET", help="checkpoint directory, preset, or a hub's name")
    add_shared(parser, "dtype", choices=DTYPES, default="bfloat16", help=DTYPE_HELP)
    add_shared(parser, "weights", "head", "tp", "batch", "json")
    option("--hardware", metavar="NAME", help="show floors of TTFT and TPOT on it (trn2)")
    add_shared(parser, "context", default=4096)
    option("--slots", type=positive, metavar="N",
           help="show what an engine of so many requests takes on each rank")  # fmt: skip
    option("--graphs", action="store_true",
           help="list what `generate` compiles for a prompt of --prompt-tokens, and an engine's "
           "warm-up for --slots")  # fmt: skip
    option("--prompt-tokens", type=positive, default=128, metavar="N",
           help="of the prompt for TTFT and --graphs; default: %(default)s")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from ..generation.engine_settings import EngineSettings
    from ..graphs import engine_memory, graph_list, instances, placement, roofline
    from ..graphs.summary import context_cost, render, summarize
    from ..model.dtypes import as_dtype
    from ..sharding.mesh import Mesh

    name = options.model
    config = _find(name)
    made = {"weights": options.weights, "head": options.head}
    summary = summarize(config, as_dtype(options.dtype), **made)
    mesh = Mesh(tp=options.tp or 1)
    cost = context_cost(config, options.context, as_dtype(options.dtype), mesh)
    summary["context"] = dataclasses.asdict(cost)
    parts = [render(name, summary) + "\n" + cost.render()]
    config = config.extended(options.context)
    fitting = instances.fits(config, dtype=options.dtype, context=options.context, **made)
    summary["instances"] = [fit.to_dict() for fit in fitting]
    parts[0] += "\n" + instances.render(fitting, f"{name} {options.dtype}{_made(options)}")
    if options.tp is not None:
        placed = placement.describe(
            config, mesh, dtype=options.dtype, batch=options.batch, capacity=options.context, **made
        )
        summary["ranks"] = placed.to_dict()
        parts.append(placed.render())
    settings = EngineSettings(slots=options.slots or EngineSettings.slots, capacity=options.context)
    if options.graphs:
        call = graph_list.of_generate(config, options.prompt_tokens, options.batch)
        engine = graph_list.of_engine(config, settings, mesh=mesh, dtype=options.dtype)
        summary["graphs"] = {
            name: [graph._asdict() for graph in graphs]
            for name, graphs in (("generate", call), ("engine", engine))
        }
        parts.append(
            f"`generate` compiles, for prompts of {options.prompt_tokens:,} tokens:\n\n"
            f"{graph_list.render(call)}\n\nan engine of {settings.slots} slots, before the first "
            f"request:\n\n{graph_list.render(engine)}"
        )
    if options.slots is not None:
        memory = engine_memory.engine_memory(
            config,
            mesh,
            slots=options.slots,
            context=options.context,
            snapshot_every=settings.snapshot_every,
            cache_bytes=settings.cache_bytes,
            dtype=options.dtype,
            **made,
        )
        engine_memory.check_fit(name, memory)
        summary["engine"] = memory.to_dict()
        parts.append(memory.render())
    if options.hardware is not None:
        summary["roofline"] = roofline.roofline(
            config,
            mesh,
            hardware=options.hardware,
            context=options.context,
            prompt=options.prompt_tokens,
            batch=options.batch,
            dtype=options.dtype,
            **made,
        )
        parts.append(roofline.render(summary["roofline"]))
    print(json.dumps(summary) if options.json else "\n\n".join(parts))
    return 0


def _made(options: argparse.Namespace) -> str:
    """Names what quantising was asked for."""
    made = {"weights": options.weights, "head": options.head}
    return "".join(f", {part} {kind}" for part, kind in made.items() if kind)


def _find(name: str) -> Config:
    """Returns the configuration of a directory, a hub's copy here, a preset, or the hub's."""
    from ..checks import hub
    from ..checks.errors import CheckpointError
    from ..files.checkpoint_files import config_of_files
    from ..model.config import Config
    from ..model.presets import find_preset, presets

    if Path(name).exists():
        return config_of_files(name)
    with contextlib.suppress(CheckpointError):  # it is not here
        directory = hub.directory_of(name, hub.CONFIG, network=False)
        if directory.is_dir():
            return config_of_files(directory)
    preset = find_preset(name)
    if preset is not None:
        return presets[preset]
    if "/" not in name:
        known = ", ".join(presets)
        raise ValueError(f"{name}: no such directory, and no preset either (presets: {known})")
    return Config.from_pretrained(name)
