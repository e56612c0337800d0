"""Loops over alike steps, whose body jit compiles once instead of the whole loop.

A model of sixteen equal blocks, whose weights and states are arguments, is the same graph sixteen
times. Under jit, `chain` ends one graph and begins another: what comes before it, each run of its
body, and what follows are graphs of their own, run one after the other. Runs of equal signatures
share one. Everywhere else `chain` is a Python loop.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from . import trees
from .unusable import Unusable

# body(carry, around, kept, state) returns the next carry and the state's successor.
Body = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


class Link(NamedTuple):
    """What `chain` was called with: see there."""

    body: Body
    carry: Any
    around: Any
    runs: Sequence[tuple[Any, Any]]


class Reached(BaseException):
    """Ends a trace at a chain. No `Exception`, so that no function under jit takes it for one."""

    def __init__(self, link: Link):
        self.link = link


class CannotCut(BaseException):
    """Says why a function with a chain in it has to be one graph."""


class Passed(Unusable):
    """Stands for a tensor that a run computes, where what follows the chain is traced.

    It can be returned, and nothing else. `place` is its number among those of all runs.
    """

    place: int

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        raise CannotCut("it computes with a new state of a layer")


def passed(place: int) -> Passed:
    """Make the stand-in of a run's tensor."""
    made = torch.empty(0, device="meta").as_subclass(Passed)
    made.place = place
    return made


Answer = Callable[[Link], tuple[Any, list[Any]]]


class _Hook(threading.local):
    answer: Answer | None = None


_hook = _Hook()


def chain(
    body: Body, carry: Any, around: Any, runs: Sequence[tuple[Any, Any]]
) -> tuple[Any, list[Any]]:
    """Run `carry, new = body(carry, around, kept, state)` for each (kept, state) of `runs`.

    Args:
        body: a pure function of pytrees, defined once (its graphs are kept for good). The carry
            that it returns has the structure, shapes and dtypes of the one that it takes.
        carry: of the first run.
        around: the same for all runs.
        runs: for each what it keeps, such as weights, and what it replaces. Under jit, successors
            get the memory of a state all of which is donated.

    Returns:
        The last carry, and the new states.
    """
    if _hook.answer is not None:
        return _hook.answer(Link(body, carry, around, runs))
    states = []
    for kept, state in runs:
        carry, state = body(carry, around, kept, state)
        states.append(state)
    return carry, states


def cannot_cut(reason: str) -> None:
    """Tell jit why a loop is none of `chain`, so that the graph's signature can say it."""
    if _hook.answer is not None:
        raise CannotCut(reason)


@contextlib.contextmanager
def answered_by(answer: Answer | None) -> Iterator[None]:
    """Let `answer` give what this thread's calls of `chain` return; None lets them loop."""
    before, _hook.answer = _hook.answer, answer
    try:
        yield
    finally:
        _hook.answer = before


@contextlib.contextmanager
def translated(
    outwards: Callable[[torch.Tensor], torch.Tensor],
    inwards: Callable[[torch.Tensor], torch.Tensor],
    outside: Callable[[Body], Body],
) -> Iterator[None]:
    """Let what is called inside see other tensors than jit, which answers its calls of `chain`.

    Args:
        outwards, inwards: make jit's tensor of one that is seen inside, and the other way round.
        outside: makes of a body one of jit's tensors; the same one each time.
    """
    answer = _hook.answer
    if answer is None:
        yield
        return

    def translate(link: Link) -> tuple[Any, list[Any]]:
        operands = trees.map_tensors(outwards, link[1:])
        found = answer(Link(outside(link.body), *operands))
        return trees.map_tensors(lambda x: x if isinstance(x, Passed) else inwards(x), found)

    with answered_by(translate):
        yield


def stop(link: Link) -> tuple[Any, list[Any]]:
    """End the trace."""
    raise Reached(link)


def once(carry: Any, states: list[Any]) -> Answer:
    """Return what answers the only chain of a function."""
    answers = [(carry, states)]

    def answer(link: Link) -> tuple[Any, list[Any]]:
        if not answers:
            raise CannotCut("it runs the layers more than once")
        return answers.pop()

    return answer
