"""Which weights are quantised where loading, converting or counting is asked to."""

from __future__ import annotations

from ...checks.choices import BLOCKS, KINDS
from ...model.declarations import VISION_PREFIX, Parameter, Piece

_HEADS = ("lm_head.weight", "model.embed_tokens.weight")  # the second where the head is tied
_GATES = ("in_proj_a.weight", "in_proj_b.weight")  # small, and decays are exponentials of them


def kind_of(parameter: Parameter, piece: Piece, weights: str | None, head: str | None) -> str:
    """Return how a piece of a parameter is to be quantised, or "" if it stays as it is.

    The text layers' matrices are, DeltaNet's projections to its gates aside.

    Args:
        parameter: the declaration.
        piece: one of its pieces.
        weights: a kind of `KINDS`, `BLOCKS`, or something else for none.
        head: the same of the head, and of an embedding that is tied to it.
    """
    name = piece.source.name
    if not parameter.linear or name.startswith(VISION_PREFIX) or name.endswith(_GATES):
        return ""
    kind = head if name in _HEADS else weights
    return kind if kind in (*KINDS, BLOCKS) else ""
