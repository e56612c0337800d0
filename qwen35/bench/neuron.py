"""TTFT and TPOT on a Neuron device, in the protocol that published figures of ports follow.

128 tokens of prompt, batch 1, bfloat16, medians (P50) of several runs after warm-up, the host's
work included. This project has had no such device: nothing here has run on one.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from ..files.checkpoint import load
from ..files.materialize import init_params
from ..graphs.roofline import PUBLISHED
from ..model.config import Config
from ..model.decoder import decode, prefill
from ..model.params import Params, Runtime
from ..model.state import init_state
from ..reports.page import about
from ..reports.tables import markdown_table, milliseconds
from ..xla.devices import device_put, xla
from ..xla.jit import jit
from ..xla.progress import count_compilations
from .statistics import median

PROMPT = 128
STEPS = 128
REPEATS = 10


def measure(
    model: str | Config,
    name: str,
    *,
    adapter: str | None = None,
    runtime: Runtime = Runtime(),
    progress: bool = False,
) -> dict[str, Any]:
    """Loads a text model in bfloat16 and runs the protocol on it.

    Args:
        model: a checkpoint directory, or the configuration of random weights.
        name: what the report calls it.
        adapter: as for `load`, of a checkpoint.
        runtime: of this rank.
        progress: show how loading and compiling go, on standard error.

    Returns:
        Plain values: `model`, `dtype`, `device`, `versions`, `tp` and the figures of `protocol`.
    """
    if isinstance(model, Config):
        params = init_params(model.text_only(), dtype="bfloat16", device="xla", runtime=runtime)
    else:
        params = load(
            model,
            dtype="bfloat16",
            device="xla",
            adapter=adapter,
            runtime=runtime,
            check_finite=False,
            progress=progress,
            vision=False,
        )
    ways = 1 if runtime.mesh is None else runtime.mesh.tp
    device = f"xla:{xla().runtime.device_type().lower()}"
    with count_compilations(progress):
        figures = protocol(params)
    return about(name, "bfloat16", device) | {"tp": ways} | figures


def protocol(
    params: Params, prompt: int = PROMPT, steps: int = STEPS, repeats: int = REPEATS
) -> dict[str, Any]:
    """Measures parameters that are on the device.

    Args:
        params: bfloat16, for figures to compare.
        prompt: tokens of it.
        steps: tokens that are generated after the first, greedily.
        repeats: prompts that are timed.

    Returns:
        `compile`, seconds of the first prompt and step beyond the medians; `ttft`, seconds from the
        prompt's tokens on the host to the first token there, P50; `tpot`, seconds from a token
        there to the next, P50; `tokens_per_second`, 1 / tpot.
    """

    def first(params, state, tokens):
        logits, state = prefill(params, state, tokens)
        return logits.argmax(-1), state

    def following(params, state, token):
        logits, state = decode(params, state, token)
        return logits.argmax(-1), state

    first, following = (jit(step, donate=("state",)) for step in (first, following))
    tokens = torch.arange(prompt)[None] % params.config.vocab_size
    to_first, between = [], []
    for number in range(repeats + 1):
        state = init_state(params, 1, prompt + steps)
        start = time.perf_counter()
        token, state = first(params, state, device_put(tokens, "xla"))
        token.cpu()
        to_first.append(time.perf_counter() - start)
        for _ in range(steps if number else 1):  # the first prompt compiles
            start = time.perf_counter()
            token, state = following(params, state, token)
            token.cpu()
            between.append(time.perf_counter() - start)
    ttft, tpot = median(to_first[1:]), median(between[1:])
    return {
        "prompt": prompt,
        "steps": steps,
        "repeats": repeats,
        "compile": to_first[0] + between[0] - ttft - tpot,
        "ttft": ttft,
        "tpot": tpot,
        "tokens_per_second": 1 / tpot,
    }


def render(result: dict[str, Any]) -> str:
    """Renders the figures, and those that others published, as a table."""
    rows = [
        (
            f"{result['model']}, {result['dtype']}, tp {result['tp']}",
            milliseconds(result["ttft"]),
            milliseconds(result["tpot"]),
            f"{result['tokens_per_second']:.1f}",
        )
    ]
    rows += [
        (
            f"published by others: {entry.preset}, tp {entry.tp} ({entry.source})",
            milliseconds(None if entry.ttft is None else entry.ttft / 1e3),
            milliseconds(entry.tpot / 1e3),
            f"{1e3 / entry.tpot:.1f}",
        )
        for entry in PUBLISHED
    ]
    return markdown_table(("P50", "TTFT", "TPOT", "tokens/s"), rows)
