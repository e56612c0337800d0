"""Exceptions at chosen lines of the engine, and what has to hold after each.

`check_whole` is the engine's invariant. `Injector` raises at the n-th line that is run within
qwen35; `serve` lets an engine do all that one does, and goes on after what is raised there.
"""

from __future__ import annotations

import ast
import dataclasses
import dis
import functools
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch

import qwen35
from qwen35 import Engine, Sampling
from qwen35.xla import private, trees
from qwen35.xla.turns import turn

PACKAGE = str(Path(qwen35.__file__).parent)
CONFIG = dataclasses.replace(
    qwen35.presets["0.8b"].text_only(),
    vocab_size=131,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    layer_types=("linear_attention", "full_attention"),
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    partial_rotary_factor=0.5,
    mrope_section=(2, 1, 1),
    initializer_range=0.5,
    linear_num_key_heads=1,
    linear_num_value_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
)
SETTINGS = {"slots": 2, "capacity": 24, "max_capacity": 48, "prefill_chunk": 8, "prefill_sizes": 1}
SETTINGS |= {"snapshot_every": 8, "cache_bytes": 12_000}
LONG = [5, 9, 2, 7, 7, 1, 30, 8, 4, 4, 60, 3, 12, 90, 17]


class Asked(NamedTuple):
    """A request of `serve`: when it comes, and after how many steps it is cancelled or late."""

    prompt: list[int]
    new_tokens: int
    arrival: int
    sampling: Sampling = Sampling(banned=[3])
    cancelled: int | None = None
    timeout: float | None = None


ASKED = (
    Asked(LONG, 6, 0),
    Asked([8, 9], 20, 0, cancelled=5),
    Asked([1, 2, 3], 7, 1, Sampling(0.9, seed=3, frequency_penalty=0.4, stop=[4, "\u4e10"])),
    Asked([*LONG, 33, 2], 3, 3, Sampling(stop=range(40, 70))),  # begins as the first one
    Asked([6] * 12, 9, 4, timeout=6.0),
    Asked([4] * 17, 12, 5),  # more than the slots hold
    Asked([7], 1, 5, cancelled=5),  # while it waits
    Asked([11], 2, 8, timeout=0.5),
)


class Letters:
    """A tokenizer of code points."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 0x4E00 for letter in text]

    def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(0x4E00 + token) for token in tokens)


class Clock:
    """Counts steps."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Interrupted(KeyboardInterrupt):
    """What an injector raises in the place of Ctrl-C."""


class Failed(RuntimeError):
    """What an injector raises in the place of an error."""


def check_whole(engine: Engine, requests: list[Any]) -> None:
    """The engine's invariant, between any two calls and whatever those raised.

    Each request stands in exactly one of waiting, filling and running, or has ended; slots are as
    many as they were, and hold tensors with values; the prefix cache's bytes and snapshots are
    those of its tree.
    """
    assert not turn._is_owned(), "another thread would wait for ever"
    schedule, batch = engine._schedule, engine.batch
    filling = [] if schedule.filling is None else [schedule.filling.request]
    placed = [*engine.waiting, *filling, *filter(None, engine.running)]
    assert len(set(map(id, placed))) == len(placed), "a request stands in two places"
    for request in requests:
        assert (request in placed) != request.done, (request.id, request.finish_reason)
        assert (request.finish_reason == "error") == (request.error is not None)
    assert set(placed) <= set(requests), "a request that nobody has submitted"
    assert engine.idle == (not placed)
    assert len(engine.running) == batch.slots == engine.settings.slots
    if not schedule._torn:
        rows = [batch.rows, batch._settings, batch._token, batch._ends]
        if schedule.filling is not None:
            rows.append(schedule.filling.row)
            assert schedule.filling.row.state.capacity == batch.capacity
        for leaf in trees.tensors(rows):
            assert type(leaf) is torch.Tensor
            assert leaf.device.type != "xla" or not private._is_placecholder(leaf)
        assert batch.rows.state.capacity == batch.capacity <= engine.max_capacity
        assert len(batch.rows.state.position) == batch.slots
    if engine.cache is not None:
        assert len(engine._keeper._copied) <= engine.settings.slots
        check_cache(engine.cache)


def check_cache(cache: Any) -> None:
    """What a prefix cache counts is what is in its tree."""
    held, snapshots, nodes = 0, set(), [cache._root]
    while nodes:
        node = nodes.pop()
        held += sum(leaf.nbytes for leaf in trees.tensors((node.kv, node.snapshot)))
        if node.snapshot is not None:
            snapshots.add(node)
        for key, child in node.children.items():
            assert child.parent is node and child.keys[0] == key
            nodes.append(child)
        assert node.children or node.snapshot is not None or node is cache._root
    assert snapshots == set(cache._recent)
    assert cache.stats.bytes == held <= cache.max_bytes
    assert cache.stats.snapshots == len(snapshots)


def serve(engine: Engine, injector: Injector | None = None) -> list[Any]:
    """Lets an engine serve `ASKED` to their ends, and checks it after every call; returns them.

    What an injector raises on the way is met as a program would that goes on.
    """
    call = Injector() if injector is None else injector
    requests: list[Any] = []
    engine._clock.now = -1.0
    for number in range(80):
        engine._clock.now += 1.0
        while len(requests) < len(ASKED) and ASKED[len(requests)].arrival <= number:
            one = ASKED[len(requests)]
            with call:
                engine.submit(
                    one.prompt,
                    max_new_tokens=one.new_tokens,
                    sampling=one.sampling,
                    timeout=one.timeout,
                )
            requests += [request for request in engine.waiting if request not in requests]
            check_whole(engine, requests)
        with call:
            engine.step()
        check_whole(engine, requests)
        for one, request in zip(ASKED, requests, strict=False):
            while one.cancelled is not None and one.cancelled <= number and not request.done:
                with call:
                    engine.cancel(request)
                check_whole(engine, requests)
        if len(requests) == len(ASKED) and engine.idle:
            return requests
    raise AssertionError("the engine does not come to an end")


class Injector:
    """Raises at a line within qwen35 that is run inside of its `with`, which ends then.

    Python looks for signals after calls, at the beginnings of functions and where loops turn back:
    so none comes between the last line of a block and what ends it. Not counted are lines where
    the interpreter leaves a `with`, or enters a `finally` behind its block, a `yield` alone, and a
    `try`, where nothing is done: right behind a `with` its block is not yet guarded there.

    Args:
        kind: of what is raised.
        at: how many lines are run before the one at which it raises, in all blocks together; a
            second number is of those between this exception and the next.

    Attributes:
        seen: file and line of those that were counted, in their order.
        raised: those at which it raised.
    """

    def __init__(self, kind: type[BaseException] = Failed, *at: int) -> None:
        self._kind = kind
        self._at = list(at)
        self.seen: list[tuple[str, int]] = []
        self.raised: list[tuple[str, int]] = []

    def __enter__(self) -> None:
        sys.settrace(self._function)

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        sys.settrace(None)
        return isinstance(error, Failed | Interrupted)

    def _function(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and frame.f_lasti not in unreachable(frame.f_code):
            place = frame.f_code.co_filename[len(PACKAGE) + 1 :], frame.f_lineno
            self.seen.append(place)
            if self._at and len(self.seen) > self._at[0]:
                self.raised.append(place)
                self._at = [len(self.seen) + more for more in self._at[1:]]
                raise self._kind(f"injected at {place}")
        return self._line


@functools.cache
def unreachable(code: CodeType) -> frozenset[int]:
    """Instructions that begin a line at which no signal is handled: see `Injector`."""
    blocks, ends = line_kinds(code.co_filename)
    return frozenset(
        instruction.offset
        for instruction in dis.get_instructions(code)
        if instruction.starts_line in ends
        or (instruction.starts_line is not None and instruction.opname == "NOP")  # a `try`
        or (instruction.starts_line in blocks and _leaves(instruction))
    )


def _leaves(instruction: dis.Instruction) -> bool:
    """Whether an instruction that begins the line of a `with` leaves its block: at the end, with
    what is returned on the stack, or with an exception."""
    ends = instruction.opname == "LOAD_CONST" and instruction.argval is None
    return ends or instruction.opname in ("SWAP", "PUSH_EXC_INFO")


@functools.cache
def line_kinds(file: str) -> tuple[frozenset[int], frozenset[int]]:
    """The lines of `with` statements; and those that begin a `finally` block, or only yield."""
    nodes = list(ast.walk(ast.parse(Path(file).read_text())))
    withs = frozenset(node.lineno for node in nodes if isinstance(node, ast.With))
    others = {
        node.finalbody[0].lineno for node in nodes if isinstance(node, ast.Try) and node.finalbody
    }
    others |= {
        node.lineno
        for node in nodes
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Yield)
        and node.value.value is None
    }
    return withs, frozenset(others)


def each_alone(params):
    """What `generate` gives for each request by itself."""
    return [
        qwen35.generate(
            params,
            Letters(),
            [one.prompt],
            max_new_tokens=one.new_tokens,
            sampling=one.sampling,
            capacity=48,
        )[0]
        for one in ASKED
    ]


def new_engine(params: qwen35.Params) -> Engine:
    """An engine of two slots with little room everywhere."""
    return Engine(params, Letters(), clock=Clock(), **SETTINGS)


def check_served(requests: list[Any], alone: list[Any], injector: Injector) -> int:
    """Every request has ended: as it does alone, or by what was raised. Returns how many did so.

    Args:
        alone: the completion of each by itself.
        injector: what raised.
    """
    failed = 0
    for request, one, expected in zip(requests, ASKED, alone, strict=True):
        tokens = tuple(request.new_tokens)
        assert tokens == expected.tokens[: len(tokens)], request.id
        if request.finish_reason == "error":
            assert injector.raised and (
                isinstance(request.error, Failed) or str(request.error) == "interrupted"
            ), request.error
            failed += 1
        elif one.cancelled is not None or one.timeout is not None:
            assert request.finish_reason in ("cancelled", "timeout")
        else:
            assert tokens == expected.tokens and request.text == expected.text
            assert request.finish_reason == expected.finish_reason
    return failed
