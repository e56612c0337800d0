"""Run functions compiled on the XLA device, and as they are on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from . import trees
from .jit import Jitted


class Compiled(Jitted):
    """What `compiled` returns: `Jitted` for XLA tensors, the function itself for CPU tensors."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _on_cpu(args, kwargs):
            return self._target.function(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile for these arguments as `Jitted.compile` does; for CPU tensors there is nothing
        to do."""
        if not _on_cpu(args, kwargs):
            super().compile(*args, **kwargs)


def compiled(function: Callable[..., Any], *, donate: tuple[str, ...] = ()) -> Compiled:
    """Return `function` as compiled graphs on XLA tensors, eager on CPU tensors.

    There is one for each function and donation in a process, so that all who run a function share
    its graphs. It is kept for good: `jit` is for functions that come and go. Where arguments hold
    both kinds of tensors, the first decides.

    Args:
        function: as for `jit`.
        donate: names of parameters that the call consumes, where it is compiled.
    """
    return _compiled(function, donate)


@functools.cache
def _compiled(function: Callable[..., Any], donate: tuple[str, ...]) -> Compiled:
    return Compiled(function, donate, None, None)


def _on_cpu(args: tuple, kwargs: dict[str, Any]) -> bool:
    first = trees.first_tensor((args, kwargs))
    with torch._C.DisableTorchFunctionSubclass():  # a donated tensor may still be asked for that
        return first is not None and first.device.type != "xla"
