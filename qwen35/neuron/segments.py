"""Step: the model as one graph, and cut into runs of layers that share one.

A run's graph is compiled once and launched for each: less to compile, more to launch, and hidden
states that pass through the device's memory. What wins has to be measured.
"""

from __future__ import annotations

import torch

from ..bench.neuron import protocol
from ..model.decoder import prefill
from ..model.params import Params
from ..model.segments import sizes_of
from ..model.state import init_state
from ..sharding.launch import start_ranks
from ..xla.devices import device_put
from ..xla.jit import jit
from ..xla.observers import on_compile
from .outcomes import Tests
from .ranks import params_of
from .steps import AbsentError, Settings

SEGMENTS = (1, "auto")
TOKENS = 24
LOGITS = 5e-2  # of the largest: in bfloat16 one graph and several may round in other places


def measure(settings: Settings) -> dict:
    """Runs the step, in every process of the model."""
    tests, rows, seen = Tests(), [], []
    with start_ranks(settings.tp, "xla") as ranks:
        params = params_of(settings, ranks)
        sizes, otherwise = sizes_of(params.config.layer_types, "auto")
        if len(sizes) == 1:
            raise AbsentError(f"nothing to cut: {otherwise}")
        for segments in SEGMENTS:
            cut = params.with_runtime(segments=segments)

            def time_it(segments=segments, cut=cut) -> str:
                with on_compile() as compiled:
                    seen.append(_logits(cut))
                    figures = protocol(cut)
                kept = {name: figures[name] for name in ("compile", "ttft", "tpot")}
                rows.append({"segments": str(segments), "graphs": compiled.count, **kept})
                return "" if bool(seen[-1].isfinite().all()) else "logits are not finite"

            tests.equal(f"segments {segments}", time_it)
        tests.within("logits of both", LOGITS, lambda: _difference(*seen))
    return tests.outcome(runs=len(sizes), rows=rows)


def _logits(params: Params) -> torch.Tensor:
    """Reads a short prompt."""
    prompt = device_put(torch.arange(TOKENS)[None] % params.config.vocab_size, "xla")
    logits, _ = jit(prefill, donate=("state",))(params, init_state(params, 1, TOKENS), prompt)
    return logits.cpu()


def _difference(whole: torch.Tensor, cut: torch.Tensor) -> float:
    return float((cut - whole).abs().max() / whole.abs().max())
