"""Mark tensors that have lost their value, so that any use of them is an error that says why."""

from __future__ import annotations

import torch


class Unusable(torch.Tensor):
    """A tensor that has lost its value. jit assigns such a class; any use raises RuntimeError."""

    reason: str

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        reasons = [kind.reason for kind in types if issubclass(kind, Unusable)]
        raise RuntimeError(f"this tensor has no value: {reasons[0]}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} tensor>"


class Donated(Unusable):
    reason = (
        "it was donated to a jit-compiled function, which has reused its memory; "
        "use the function's result, or leave the argument out of donate="
    )


class Escaped(Unusable):
    reason = (
        "it was computed while jit traced a function and has escaped from there; "
        "return it from the function instead"
    )


UNUSABLE = frozenset((Donated, Escaped))
