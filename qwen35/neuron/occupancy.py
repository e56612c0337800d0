"""Step: what the state holds after each step: nothing lost, aliased or crossed between rows.

A port whose kernels lost most of their writes to the KV cache still passed its greedy tests; so
here the state itself is looked at, value by value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..files.checkpoint import load
from ..model.decoder import decode, prefill
from ..model.state import AttentionState, State, init_state
from ..prompts.tokenizer import Tokenizer
from ..xla.devices import device_put
from ..xla.jit import jit
from .model import demo_of, prompts_of
from .outcomes import Tests
from .steps import Settings

CAPACITY = 48
DECODES = 9  # each row is idle in three of them
NEAR = 2e-3  # of the largest value of a tensor


class Moment(NamedTuple):
    """A step: the device's state before and after it, the CPU's after it, and who took part."""

    before: State
    after: State
    truth: State
    active: Tensor


def measure(settings: Settings) -> dict:
    """Runs the step."""
    moments = record(settings)
    tests = Tests()
    for name, compare in CHECKS.items():

        def look(compare: Callable[[Moment], str] = compare) -> str:
            said = ((number, compare(moment)) for number, moment in enumerate(moments))
            return next((f"step {number}: {text}" for number, text in said if text), "")

        tests.equal(name, look)
    return tests.outcome(steps=len(moments), rows=int(moments[0].active.numel()))


def record(settings: Settings) -> list[Moment]:
    """Reads three prompts of unequal lengths and decodes, on the device and on the CPU."""
    directory = demo_of(settings)
    tokenizer = Tokenizer.from_pretrained(directory)
    rows = [
        tokenizer.encode(prompt)[: 3 + 2 * n] for n, prompt in enumerate(prompts_of(directory)[:3])
    ]
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])

    host = load(directory, dtype="float32", device="cpu")
    device = load(directory, dtype="float32", device="xla")
    read, step = jit(prefill), jit(decode)
    truth, found = init_state(host, 3, CAPACITY), init_state(device, 3, CAPACITY)
    logits, truth_after = prefill(host, truth, tokens, lengths)
    arguments = device_put((tokens, lengths), "xla")
    _, found_after = read(device, found, *arguments)
    everyone = torch.ones(3, dtype=torch.bool)
    moments = [_moment(found, found_after, truth_after, everyone)]
    for number in range(DECODES):
        truth, found = truth_after, found_after
        active = torch.arange(3) != number % 3
        token = logits.argmax(-1)
        logits, truth_after = decode(host, truth, token, active)
        _, found_after = step(device, found, *device_put((token, active), "xla"))
        moments.append(_moment(found, found_after, truth_after, active))
    return moments


def _moment(before: State, after: State, truth: State, active: Tensor) -> Moment:
    return Moment(device_put(before, "cpu"), device_put(after, "cpu"), truth, active)


def _positions(moment: Moment) -> str:
    found, truth = moment.after.position.tolist(), moment.truth.position.tolist()
    return "" if found == truth else f"positions {found}, not {truth}"


def _idle(moment: Moment) -> str:
    """An idle row keeps every bit."""
    for name, before, after, _ in _tensors(moment):
        for row in range(len(moment.active)):
            if not moment.active[row] and not _bits_equal(before[row], after[row]):
                return f"{name}: row {row} was idle and changed"
    return ""


def _old(moment: Moment) -> str:
    """Keys and values of earlier tokens stay as they are."""
    for name, before, after, slots in _caches(moment):
        for row, position in enumerate(moment.before.position.tolist()):
            kept = before[row].narrow(slots, 0, position)
            if not _bits_equal(kept, after[row].narrow(slots, 0, position)):
                return f"{name}: row {row} lost of its first {position} tokens"
    return ""


def _beyond(moment: Moment) -> str:
    """Nothing stands behind a row's position."""
    for name, _, after, slots in _caches(moment):
        for row, position in enumerate(moment.after.position.tolist()):
            rest = after[row].narrow(slots, position, CAPACITY - position)
            if rest.abs().max() > 0:
                return f"{name}: row {row} has something behind its {position} tokens"
    return ""


def _near(moment: Moment) -> str:
    """What is there is what the CPU has."""
    truths = {name: tensor for name, tensor in _named(moment.truth)}
    for name, _, after, _ in _tensors(moment):
        truth = truths[name]
        error = float((after - truth).abs().max() / truth.abs().max().clamp(min=1e-30))
        if not error < NEAR:
            return f"{name}: off by {error:.1e} of its largest value"
    return ""


CHECKS = {
    "positions": _positions,
    "an idle row keeps every bit": _idle,
    "earlier keys and values stay": _old,
    "nothing behind a row's position": _beyond,
    "every value is the CPU's": _near,
}


def _named(state: State) -> list[tuple[str, Tensor]]:
    return [
        (f"layer {number}, {field}", getattr(layer, field))
        for number, layer in enumerate(state.layers)
        for field in layer._fields
    ]


def _tensors(moment: Moment) -> list[tuple[str, Tensor, Tensor, int]]:
    """The state's tensors before and after, with a row's dimension that counts tokens, or 0."""
    before, after = dict(_named(moment.before)), _named(moment.after)
    places = {"key": 2, "value": 1}
    return [(n, before[n], tensor, places.get(n.split()[-1], 0)) for n, tensor in after]


def _caches(moment: Moment) -> list[tuple[str, Tensor, Tensor, int]]:
    attention = {
        f"layer {number}, {field}"
        for number, layer in enumerate(moment.after.layers)
        if isinstance(layer, AttentionState)
        for field in layer._fields
    }
    return [entry for entry in _tensors(moment) if entry[0] in attention]


def _bits_equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.int32), other.contiguous().view(torch.int32))
