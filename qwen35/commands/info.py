"""`qwen35 info`: a model's sizes, what a rank holds, floors of its times."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .options import DTYPE_HELP, DTYPES, add_shared, positive

SUMMARY = "print a model's sizes, without its weights"
HELP = """\
Print what a model comes to: layers, parameters by kind, bytes of weights, of state per sequence
and of KV cache per token. Takes a checkpoint directory or a preset.

  qwen35 info demo
  qwen35 info 27b --dtype bfloat16 --json
  qwen35 info 27b --tp 8                    what each rank holds
  qwen35 info 27b --tp 8 --hardware trn2    and floors of TTFT and TPOT
  qwen35 info 27b --weights int4 --head int8   quantised as it is loaded
  qwen35 info 27b --tp 4 --slots 8 --context 32768   what an engine takes, refused if it can't fit
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `qwen35 info`."""
    option = parser.add_argument
    option("model", metavar="DIR|PRESET", help="checkpoint directory or preset")
    add_shared(parser, "dtype", choices=DTYPES, default="bfloat16", help=DTYPE_HELP)
    add_shared(parser, "weights", "head", "tp", "batch", "json")
    option("--hardware", metavar="NAME", help="show floors of TTFT and TPOT on it (trn2)")
    option("--context", type=positive, default=4096, metavar="N",
           help="tokens that the KV cache holds; default: %(default)s")  # fmt: skip
    option("--slots", type=positive, metavar="N",
           help="show what an engine of so many requests takes on each rank")  # fmt: skip
    option("--prompt-tokens", type=positive, default=128, metavar="N",
           help="of the prompt for TTFT; default: %(default)s")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from ..generation.engine_settings import EngineSettings
    from ..graphs import engine_memory, placement, roofline
    from ..graphs.summary import render, summarize
    from ..model.config import Config
    from ..model.params import as_dtype
    from ..model.presets import presets
    from ..sharding.mesh import Mesh

    name = options.model
    if name in presets and not Path(name).exists():
        config = presets[name]
    elif not Path(name).exists():
        known = ", ".join(presets)
        raise ValueError(f"{name}: no such directory, and no preset either (presets: {known})")
    else:
        config = Config.from_pretrained(name)
    made = {"weights": options.weights, "head": options.head}
    summary = summarize(config, as_dtype(options.dtype), **made)
    parts = [render(name, summary)]
    mesh = Mesh(tp=options.tp or 1)
    if options.tp is not None:
        placed = placement.describe(
            config, mesh, dtype=options.dtype, batch=options.batch, capacity=options.context, **made
        )
        summary["ranks"] = placed.to_dict()
        parts.append(placed.render())
    if options.slots is not None:
        settings = EngineSettings(slots=options.slots)
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
