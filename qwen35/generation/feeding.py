"""Any number of prompts through an engine, which holds a few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from .request import Request
from .results import Completion, Piece

Tag = TypeVar("Tag")


class Engine(Protocol):
    """What is needed of `engine.Engine`."""

    @property
    def waiting(self) -> deque[Request]: ...

    @property
    def running(self) -> list[Request | None]: ...

    def step(self) -> list[Piece]: ...

    def cancel(self, request: Request) -> None: ...


def feed(
    engine: Engine, jobs: Iterable[tuple[Tag, Callable[[], Request]]]
) -> Iterator[list[tuple[Tag, Request | Exception]]]:
    """Submits jobs as slots come free, and yields after each step those that have ended.

    No more wait than there are free slots, or one where there is none: what draws its jobs from
    elsewhere leaves the others to who else draws there. Closing the iterator cancels what has not
    ended.

    Args:
        engine: others may run there too.
        jobs: each a tag and a function that submits it.

    Yields:
        Tags and requests that have ended; or a ValueError or OSError with which one was refused.
    """
    left, more = iter(jobs), True
    pending: list[tuple[Tag, Request]] = []
    try:
        while more or pending:
            ended: list[tuple[Tag, Request | Exception]] = []
            while more and len(engine.waiting) < max(1, engine.running.count(None)):
                job = next(left, None)
                if job is None:
                    more = False
                    break
                tag, submit = job
                try:
                    pending.append((tag, submit()))
                except (ValueError, OSError) as error:
                    ended.append((tag, error))
            engine.step()
            ended += [(tag, request) for tag, request in pending if request.done]
            pending = [(tag, request) for tag, request in pending if not request.done]
            yield ended
    except GeneratorExit:
        for _, request in pending:
            engine.cancel(request)
        raise


def in_order(engine: Engine, submits: Iterable[Callable[[], Request]]) -> Iterator[Completion]:
    """Yields the completions of jobs in the order of the jobs, however they end.

    Raises, where it comes to one that was refused or failed, what refused or ended it.
    """
    ended: dict[int, Request | Exception] = {}
    following = 0
    for some in feed(engine, enumerate(submits)):
        ended |= some
        while following in ended:
            outcome = ended.pop(following)
            error = outcome if isinstance(outcome, Exception) else outcome.error
            if error is not None:
                raise error
            assert isinstance(outcome, Request)
            yield outcome.completion()
            following += 1
