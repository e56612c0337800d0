"""Run functions compiled, and as they are on the CPU where no backend is chosen for that."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from . import trees
from .jit import Jitted
from .turns import tracing_here


class Compiled:
    """What `compiled` returns: the `Jitted` of each backend, and the function itself."""

    def __init__(self, function: Callable[..., Any], donate: tuple[str, ...]):
        functools.update_wrapper(self, function)
        self._function = function
        self._donate = donate
        self._jitted = {None: Jitted(function, donate)}

    @property
    def compile_count(self) -> int:
        """The number of compilations so far."""
        return sum(jitted.compile_count for jitted in self._jitted.values())

    @property
    def signatures(self) -> list[str]:
        """One readable line for each compilation."""
        return [line for jitted in self._jitted.values() for line in jitted.signatures]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or tracing_here.active:
            return self._function(*args, **kwargs)
        return (self._of(args, kwargs) or self._function)(*args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile for these arguments as `Jitted.compile` does; where the function itself would
        run, there is nothing to do."""
        jitted = self._of(args, kwargs)
        if jitted is not None:
            jitted.compile(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> str:
        """Return the text of the graph for these arguments, as `Jitted.lower` does."""
        return (self._of(args, kwargs) or self._jitted[None]).lower(*args, **kwargs)

    def _of(self, args: tuple, kwargs: dict[str, Any]) -> Jitted | None:
        """Return what compiles for these arguments; None if nothing does."""
        backend = trees.backend_of((*args, *kwargs.values()))
        if backend is None and _on_cpu(args, kwargs):
            return None
        if backend not in self._jitted:
            self._jitted[backend] = Jitted(self._function, self._donate, backend)
        return self._jitted[backend]


def compiled(function: Callable[..., Any], *, donate: tuple[str, ...] = ()) -> Compiled:
    """Return `function` as compiled graphs, or eager on CPU tensors.

    The first frozen tree among its arguments says which backend of `jit` compiles it
    (`register_frozen`). Where none does, tensors on the CPU run it as it is, others by XLA.

    There is one for each function and donation in a process, so that all who run a function share
    its graphs. It is kept for good: `jit` is for functions that come and go. Where arguments hold
    tensors of both kinds, the first decides.

    Args:
        function: as for `jit`.
        donate: names of parameters that the call consumes, where it is compiled.
    """
    return _compiled(function, donate)


@functools.cache
def _compiled(function: Callable[..., Any], donate: tuple[str, ...]) -> Compiled:
    return Compiled(function, donate)


def _on_cpu(args: tuple, kwargs: dict[str, Any]) -> bool:
    first = trees.first_tensor((args, kwargs))
    with torch._C.DisableTorchFunctionSubclass():  # a donated tensor may still be asked for that
        return first is not None and first.device.type != "xla"
