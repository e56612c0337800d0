"""Decode and prefill by each backend of `jit`, and by transformers, on the processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from ..evaluation.reference import require
from ..files.checkpoint import load
from ..model.decoder import decode, prefill
from ..model.dtypes import as_dtype
from ..model.state import init_state
from ..xla.devices import device_put
from ..xla.jit import jit
from .machine import timed

# What may compute: XLA, backends of torch.compile, eager torch, and transformers.
SIDES = ("xla", "inductor", "eager", "transformers")


@dataclass(frozen=True)
class BackendRun:
    """Times of one process, in seconds: of loading, of what the first calls took longer than later
    ones, and the medians of prefill and decode."""

    load: float
    compile: float
    prefill: float
    decode: float


def measure(side: str, model: str, dtype: str, length: int, steps: int) -> BackendRun:
    """Times one of `SIDES` on a checkpoint directory.

    Args:
        dtype: of the weights.
        length: tokens of the prompt; at least as many as `steps`.
        steps: of decode behind it, of each of three rounds.
    """
    start = time.perf_counter()
    begin = _transformers(model, dtype) if side == "transformers" else _ours(side, model, dtype)
    loading = time.perf_counter() - start
    prompt = torch.arange(length)[None] % 1000
    runs: list[tuple[float, list[float]]] = []
    for _ in range(3):
        calls = begin(prompt)
        first = timed(lambda calls=calls: next(calls))
        runs.append((first, [timed(lambda calls=calls: next(calls)) for _ in range(steps)]))
    (cold, [cold_step, *_]), *_ = runs
    prefills = median(first for first, _ in runs[1:])
    decodes = median(step for _, taken in runs for step in taken[1:])
    return BackendRun(loading, cold + cold_step - prefills - decodes, prefills, decodes)


def _ours(side: str, model: str, dtype: str) -> Callable[[torch.Tensor], Iterator[None]]:
    device = "xla" if side == "xla" else "cpu"
    params = load(model, dtype=dtype, device=device, vision=False, check_finite=False)
    read, step = prefill, decode
    if side != "eager":
        backend = None if side == "xla" else side
        read, step = (jit(f, donate=("state",), backend=backend) for f in (prefill, decode))

    def begin(prompt: torch.Tensor) -> Iterator[None]:
        state: Any = init_state(params, 1, 2 * prompt.shape[1])
        given, token = device_put((prompt, prompt[:, 0]), device)
        following: Any = read
        while True:
            with torch.no_grad():
                logits, state = following(params, state, given)
            device_put(logits, "cpu")  # waits for them
            given, following = token, step
            yield

    return begin


def _transformers(model: str, dtype: str) -> Callable[[torch.Tensor], Iterator[None]]:
    theirs = require().from_pretrained(model, dtype=as_dtype(dtype)).eval()

    def begin(prompt: torch.Tensor) -> Iterator[None]:
        cache, given = None, prompt
        while True:
            with torch.no_grad():
                out = theirs(given, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, given = out.past_key_values, prompt[:, :1]
            yield

    return begin
