"""What an engine's exported graphs are called with to be checked, and what its steps give then."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from ..generation import steps
from ..generation.batch import Batch
from ..generation.sampling_settings import Sampling
from ..model.params import Params
from ..xla import trees
from .engine_graphs import RETURNS
from .export_check import Call

_READ = 3  # tokens that every row has read
_SETTINGS = Sampling(
    temperature=0.8,
    top_k=9,
    top_p=0.9,
    min_p=0.01,
    presence_penalty=0.5,
    frequency_penalty=0.25,
    repetition_penalty=1.2,
)


@torch.no_grad()
def engine_calls_of(
    params: Params, *, slots: int, chunks: Sequence[int], capacity: int, seed: int = 0
) -> list[Call]:
    """Lists a call of each graph of `trace_engine`, and what the step gives on the CPU.

    Slots hold rows that have read random tokens and are sampled; all that a graph takes besides the
    weights is given, and all that it returns compared.

    Args:
        params: of one device, on the CPU.
        slots, chunks, capacity: as the graphs were traced.
        seed: of tokens and pictures.
    """
    generator = torch.Generator().manual_seed(seed)
    config = params.config
    sizes, ends = tuple(sorted(set(chunks))), frozenset(config.eos_token_ids)
    made = {"slots": slots, "capacity": capacity, "sizes": sizes, "top_logprobs": 0}
    batch = Batch(params, **made, ends=ends)

    def tokens(count: int) -> list[int]:
        return torch.randint(config.vocab_size, (count,), generator=generator).tolist()

    def read(prompt: list[int]) -> steps.Rows:
        return steps.prefill(params, batch.blank(), *batch.piece(prompt))

    for slot in range(slots):
        prompt = tokens(_READ)
        batch.put(slot, read(prompt), _SETTINGS, prompt, ends)
    batch.choose([True] * slots, True, False, [None] * slots, [None] * slots)
    row = read(tokens(_READ))
    calls = []
    for name, step, values in batch.graphs(pictures=config.vision is not None, limited=True):
        function = step.__wrapped__
        arguments = dict(zip(inspect.signature(function).parameters, values, strict=False))
        arguments |= _changed(arguments, row, batch, generator)
        results: Any = function(**arguments)
        names = RETURNS[step]
        results = results if len(names) > 1 else (results,)
        given = {name: value for name, value in arguments.items() if name != "params"}
        calls.append(
            Call(
                f"engine_{name}",
                _tensors(given),
                _tensors(dict(zip(names, results, strict=True))),
            )
        )
    return calls


def _changed(
    arguments: dict[str, Any], row: steps.Rows, batch: Batch, generator: torch.Generator
) -> dict[str, Any]:
    """Arguments in place of those of a warm-up, which are zeros where it does not matter there."""
    changed: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, steps.Rows) and len(value.logits) == 1:
            changed[name] = row
    if "tokens" in arguments:
        tokens = arguments["tokens"]
        places = torch.arange(tokens.shape[1])
        vocabulary = batch.params.config.vocab_size
        changed["tokens"] = torch.randint(vocabulary, tokens.shape, generator=generator)
        changed["lengths"] = torch.tensor([min(tokens.shape[1] - 1, batch.capacity - _READ)])
        if arguments["embeds"] is not None:
            embeds = arguments["embeds"]
            changed["embeds"] = torch.randn(embeds.shape, generator=generator).to(embeds.dtype)
            rows = torch.stack([places * 0, places // 4, places % 4])[:, None]
            changed["positions"] = rows + _READ
    if "slot" in arguments:
        changed["slot"] = torch.tensor([batch.slots - 1])
    if "start" in arguments:
        changed["start"] = torch.tensor([1])
    if "forced" in arguments:
        changed["forced"] = torch.arange(batch.slots) - 1  # of the first slot nothing
    if arguments.get("allowed") is not None:
        allowed = arguments["allowed"]
        some = torch.randint(2**31, allowed.shape, generator=generator, dtype=allowed.dtype)
        changed["allowed"] = allowed & some
    return changed


def _tensors(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    leaves = (pair for name, tree in values.items() for pair in trees.named_leaves(tree, name))
    return {path: leaf.clone() for path, leaf in leaves if isinstance(leaf, torch.Tensor)}
