"""An engine in several processes: what is asked of the first one's, all of them do.

Every process has an engine of its own, with a rank's share of the parameters, the slots and the
prefix cache. Which request is next, what is kept and what goes is the same in all, because all make
the same calls in the same order and compute the same tokens: one exchange for each call says what
it is, and compares what came of the last one (`sharding.following`). Requests go to the first
process's engine; the others `follow`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ..model.params import Params
from ..sharding import process
from ..sharding.following import Calls
from ..xla.devices import at_once, device_put
from ..xla.progress import show_compilations
from .prefix_cache import CacheStats

_CLOSE, _PAUSE = "close", "pause"  # what is told that is no call


class Engine(Protocol):
    """What is needed of `engine.Engine`."""

    _together: Together | None
    _progress: bool

    @property
    def stats(self) -> CacheStats:
        """What the prefix cache did and holds."""


class Together:
    """An engine's place among those of the other processes of its tp group.

    Attributes:
        leads: whether requests go to this process's engine.
    """

    def __init__(self, params: Params, **facts: Any) -> None:
        """Joins the others.

        Raises:
            ValueError: configuration, mesh, dtype, the layers' norms (a rank has those whole) or
                one of `facts` differs between processes.
            RuntimeError: the processes were not started.
        """
        mesh, rank = params.runtime.mesh, params.runtime.own_rank
        assert mesh is not None
        facts |= {"config": params.config, "mesh": mesh, "dtype": params.dtype}
        facts |= {"weights": _norms_digest(params)}
        process.tp_group(mesh)  # which says how to start, where that has not been done
        process.check_equal_on_ranks(**facts)
        self._rank = rank
        self._calls = Calls(mesh, rank)
        self._inside = self._over = False
        self.leads = self._calls.leads

    def note(self, outcome: str) -> None:
        """Adds to what all processes have to come to in the present call."""
        self._calls.note(outcome)

    def call(self, engine: Engine, method: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """Calls a method of the engine here and in the processes that follow.

        Raises:
            RuntimeError: this process follows; the engine is over; or the call failed here, after
                which it is: what the other processes came to is not known.
        """
        if self._inside:  # a call that another one makes, there as well
            return method(engine, *args, **kwargs)
        if not self.leads:
            raise RuntimeError(
                f"rank {self._rank} follows: requests go to the first rank's engine, here call "
                "follow()"
            )
        if self._over:
            raise RuntimeError("this engine is over: it was closed, or a rank failed")
        with self._ended_by_failure(method.__name__.strip("_")):
            self._calls.tell((method.__name__, args, kwargs))
            return self._run(engine, method, args, kwargs)

    def follow(self, engine: Engine) -> None:
        """Makes the calls of the process that leads until it closes its engine, or pauses."""
        while not self._over:
            with self._ended_by_failure("what it was told"):
                call = self._calls.hear()
                if call in (_CLOSE, _PAUSE):
                    self._over = call == _CLOSE
                    return
                name, args, kwargs = call
                method = getattr(type(engine), name).__wrapped__
                self._run(engine, method, args, kwargs)

    def pause(self) -> None:
        """Lets the processes that follow return from `follow`, which they may call again."""
        self._leave(_PAUSE)

    def close(self) -> None:
        """Lets the processes that follow return from `follow`; nothing if that has been done."""
        self._leave(_CLOSE)
        self._over = True

    def _leave(self, how: str) -> None:
        if not self._over:
            with self._ended_by_failure(how):
                self._calls.tell(how)

    def _run(self, engine: Engine, method: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        self._inside = True
        try:
            result = method(engine, *args, **kwargs)
        finally:
            self._inside = False
        pieces = result if isinstance(result, list) else ""
        self.note(f"{method.__name__}: {pieces} {engine.stats} ")
        return result

    @contextlib.contextmanager
    def _ended_by_failure(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._over = True
            raise RuntimeError(f"rank {self._rank} ends in {name}: {error}") from error
        except BaseException:
            self._over = True
            raise


def _norms_digest(params: Params) -> str:
    """Names the weights by those that every rank has whole: two checkpoints of one geometry would
    else compute something together that belongs to neither."""
    content = hashlib.sha256()
    norms = (params.norm, *(layer.input_norm for layer in params.layers))
    floats = at_once(params.device, lambda: tuple(tensor.detach().float() for tensor in norms))
    for norm in device_put(floats, "cpu"):
        content.update(norm.contiguous().numpy().tobytes())
    return content.hexdigest()[:16]


def join(params: Params, **facts: Any) -> Together | None:
    """Joins the engines of the other processes, if the parameters are those of one rank of some.

    Raises as `Together`.
    """
    mesh = params.runtime.mesh
    if mesh is None or params.runtime.rank is None or mesh.tp == 1:
        return None
    return Together(params, **facts)


def everywhere(method: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a method of an engine run in all of its processes."""

    @functools.wraps(method)
    def run(engine: Engine, *args: Any, **kwargs: Any) -> Any:
        if engine._together is None:
            return method(engine, *args, **kwargs)
        return engine._together.call(engine, method, args, kwargs)

    return run


def with_progress(method: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a method of an engine show what it compiles, if the engine's `progress` says so."""

    @functools.wraps(method)
    def run(engine: Engine, *args: Any, **kwargs: Any) -> Any:
        with show_compilations(engine._progress):
            return method(engine, *args, **kwargs)

    return run
