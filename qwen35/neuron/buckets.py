"""Step: how long a prefill step of each size takes to compile and to run.

A large step saves launches, and can spill on-chip memory: others saw 2,048 tokens take three times
what two steps of 1,024 would.
"""

from __future__ import annotations

import time

import torch

from ..bench.statistics import median
from ..model.decoder import prefill
from ..model.state import init_state
from ..sharding.launch import start_ranks
from ..xla.devices import device_put
from ..xla.jit import jit
from .outcomes import Tests
from .ranks import params_of
from .steps import Settings

SIZES = (32, 128, 512, 1024, 2048)
REPEATS = 5


def measure(settings: Settings) -> dict:
    """Runs the step, in every process of the model."""
    tests, rows = Tests(), []
    with start_ranks(settings.tp, "xla") as ranks:
        params = params_of(settings, ranks)

        def time_size(size: int) -> str:
            step, seconds = jit(prefill, donate=("state",)), []
            tokens = device_put(torch.arange(size)[None] % params.config.vocab_size, "xla")
            for _ in range(1 + REPEATS):
                state = init_state(params, 1, size)
                start = time.perf_counter()
                logits, state = step(params, state, tokens)
                finite = bool(logits.isfinite().all().cpu())
                seconds.append(time.perf_counter() - start)
            run = median(seconds[1:])
            rows.append({"size": size, "compile": seconds[0] - run, "seconds": run})
            return "" if finite else "logits are not finite"

        for size in SIZES:
            tests.equal(f"{size} tokens", lambda size=size: time_size(size))
    return tests.outcome(rows=rows)
