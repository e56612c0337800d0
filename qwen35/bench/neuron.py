"""TTFT and TPOT on a Neuron device, in the protocol that published figures of ports follow.

128 tokens of prompt, batch 1, bfloat16, medians (P50) of several runs after warm-up, the host's
work included. This project has had no such device: nothing here has run on one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import torch

from ..commands.launch import launch
from ..files.checkpoint import load
from ..graphs.roofline import PUBLISHED
from ..model.decoder import decode, prefill
from ..model.params import Params
from ..model.state import init_state
from ..report import about
from ..xla.devices import device_put
from ..xla.jit import jit
from .statistics import median
from .tables import milliseconds, table

PROMPT = 128
STEPS = 128
REPEATS = 10


def bench(options: argparse.Namespace) -> int:
    """Runs the protocol on the ranks of this command and prints what it gave."""
    _check_device()
    if options.model is None:
        raise ValueError("--device neuron measures a checkpoint: name its directory with --model")
    with launch(options.tp, "xla", options.timeout) as where:
        params = load(
            options.model,
            dtype="bfloat16",
            device="xla",
            runtime=where.runtime,
            check_finite=False,
            progress=where.speaks,
            vision=False,
        )
        result = about(options.model, params) | {"tp": options.tp} | protocol(params)
        if where.speaks:
            print(json.dumps(result) if options.json else render(result))
    return 0


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
    """The figures, and those that others published, as a table."""
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
    return table(("P50", "TTFT", "TPOT", "tokens/s"), rows)


def _check_device() -> None:
    if importlib.util.find_spec("libneuronxla") is None or not any(Path("/dev").glob("neuron*")):
        raise ValueError(
            "--device neuron needs a Neuron device and torch-neuronx's libneuronxla, and this "
            "machine does not have both"
        )
