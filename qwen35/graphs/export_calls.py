"""What exported graphs are called with to be checked, and what the model gives for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..model.decoder import decode, prefill
from ..model.params import Params
from ..model.state import State, init_state
from ..vision.frames import groups
from ..vision.tower import tower
from ..xla import trees
from .export_check import Call
from .lowering import Lowered

_DECODE = 4  # calls, each with the likeliest token
_ROUNDS = 2  # of prefill: the second begins with a state


def calls_of(
    params: Params,
    graphs: Mapping[str, Lowered],
    *,
    tokens: int,
    batch: int,
    capacity: int,
    seed: int = 0,
) -> list[Call]:
    """Lists calls of the graphs of `export.trace` with random prompts, and the model's results.

    Text phases come one after the other, each going on from the state before: two prefills of
    `tokens` each, one with embeddings and positions given, and four tokens decoded.

    Args:
        params: of one device, on the CPU, with the tower for "vision".
        graphs: by phase; of several ranks, states are not compared.
        tokens, batch, capacity: as the graphs were traced.
        seed: of prompts and patches.

    Raises:
        ValueError: the capacity is too small for that.
    """
    generator = torch.Generator().manual_seed(seed)
    calls = []
    if "vision" in graphs:
        calls.append(_vision_call(params, tokens, batch, generator))
    text = [phase for phase in ("prefill", "prefill_images", "decode") if phase in graphs]
    if text:
        steps = [phase for phase in text for _ in range(_rounds(phase, text))]
        needed = sum(1 if phase == "decode" else tokens for phase in steps)
        if needed > capacity:
            raise ValueError(f"--run takes {needed} tokens, over the capacity of {capacity}")
        calls += _text_calls(params, graphs, steps, tokens, batch, capacity, generator)
    return calls


def _rounds(phase: str, phases: Sequence[str]) -> int:
    if phase == "decode":
        return _DECODE if len(phases) > 1 else 2 * _DECODE
    return 1 if phase == "prefill_images" and len(phases) > 1 else _ROUNDS


@torch.no_grad()
def _text_calls(
    params: Params,
    graphs: Mapping[str, Lowered],
    steps: Sequence[str],
    tokens: int,
    batch: int,
    capacity: int,
    generator: torch.Generator,
) -> list[Call]:
    state = init_state(params, batch, capacity)
    vocabulary, width = params.config.vocab_size, params.config.hidden_size
    logits = torch.rand(batch, vocabulary, generator=generator)
    inputs: dict[str, torch.Tensor] = _empty_state(graphs[steps[0]])
    calls = []
    for phase in steps:
        more: dict[str, torch.Tensor] = {}
        if phase == "decode":
            ids = logits.argmax(-1).to(torch.int32)
            logits, state = decode(params, state, ids)
        else:
            shape = (batch, tokens)
            ids = torch.randint(vocabulary, shape, generator=generator, dtype=torch.int32)
            if phase == "prefill_images":
                embeds = torch.randn(*shape, width, generator=generator) / width**0.5
                more = {"embeds": embeds.to(params.dtype), "positions": _grid(state, tokens)}
            logits, state = prefill(params, state, ids, **more)
        given = inputs | {"tokens": ids} | more
        split = any(path == "params.tp_index" for path in graphs[phase].arguments)
        states = {} if split else dict(trees.named_leaves(state, "state"))
        calls.append(Call(phase, given, {"logits": logits} | states))
        inputs = {}
    return calls


def _empty_state(graph: Lowered) -> dict[str, torch.Tensor]:
    """A rank's, by the graph's parameters."""
    state = [slot for slot in graph.inputs if slot.path.startswith("state")]
    return {slot.path: torch.zeros(slot.shape, dtype=slot.dtype) for slot in state}


def _grid(state: State, tokens: int) -> torch.Tensor:
    """Positions [3, B, T] of a picture four tokens wide that comes next."""
    place = torch.arange(tokens, dtype=torch.int32)
    rows = torch.stack([torch.zeros_like(place), place // 4, place % 4])
    return rows[:, None] + (state.position + state.rope_offset)[None, :, None]


@torch.no_grad()
def _vision_call(params: Params, tokens: int, batch: int, generator: torch.Generator) -> Call:
    """Frames as `export.trace` has them, each with patches of its own."""
    assert params.vision is not None
    config = params.vision.config
    merge = config.spatial_merge_size
    size = (1, merge, merge * tokens)
    length = tokens * config.merge_factor
    made = []
    for _ in range(batch):
        patches = torch.randn(length, config.patch_dim, generator=generator)
        made += groups(config, patches.to(params.dtype), [size])
    frames: Any = made[0]._replace(patches=torch.cat([frame.patches for frame in made]))
    given = dict(trees.named_leaves(frames, "tokens"))
    return Call("vision", given, {"logits": tower(params.vision, frames)})
