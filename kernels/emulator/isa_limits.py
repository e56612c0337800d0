"""The strictness "isa": limits of single instructions, tighter than those that AWS documents.

AWS's page on access patterns says that hardware reads up to four free dimensions, "though most
instructions only support 1D/2D/3D", and not which. Here are third parties' figures: operand
structures that were read out of the shipped compiler (S3D3 of a matmul: three dimensions of source
and destination), the four comparisons of KLR's `AffineSelectCmp`, and the refusal of one
interpreter calibrated on real NKI. A kernel that passes "documented" and fails here may run; one
that passes here has less to fear.
"""

from __future__ import annotations

import warnings

import numpy as np

from .errors import IsaWarning
from .rules import add_rule, fail
from .tensor import Tensor, free_dimensions

STRICTNESSES = ("documented", "isa")

# Free dimensions of every operand, by instruction; others take three.
FREE_DIMENSIONS = {
    "affine_select": 2,
    "memset": 4,
    "nc_stream_shuffle": 4,
    "reciprocal": 4,
    "tensor_copy": 4,
    "tensor_reduce": 4,
}
COMPARISONS = ("equal", "not_equal", "greater", "greater_equal")

add_rule(
    "isa-free-dimensions",
    "An instruction takes as many free dimensions as its operands' fields have: two of "
    "affine_select, four of copies and reductions, three of the others.",
    "third parties: structures of the shipped compiler; aps: Hardware Capability",
    "strictness isa: every operand of a compute engine, after merging dimensions",
)
add_rule(
    "isa-matmul-shape",
    "A matmul's destination has the free sizes of its moving operand.",
    "third party: an interpreter calibrated on real NKI; no published kernel does otherwise",
    "strictness isa: nc_matmul",
)
add_rule(
    "isa-comparison",
    "affine_select compares by equal, not_equal, greater or greater_equal.",
    "third party: KLR, AffineSelectCmp",
    "strictness isa: affine_select",
)


def check_operands(op: str, engine: str, operands) -> None:
    """Refuse an instruction one of whose operands has more free dimensions than it takes."""
    if engine == "dma":
        return  # descriptors are made of any pattern
    limit = FREE_DIMENSIONS.get(op, 3)
    for tensor in operands:
        if tensor.on_chip and free_dimensions(tensor) > limit:
            fail(
                "isa-free-dimensions",
                f"{tensor!r} needs {free_dimensions(tensor)} free dimensions, {op} takes {limit}",
            )


def check_matmul_shape(dst: Tensor, moving: Tensor) -> None:
    """Refuse a matmul whose destination has not the free sizes of its moving operand."""
    sizes = [[n for n in tensor.shape[1:] if n > 1] for tensor in (dst, moving)]
    if sizes[0] != sizes[1]:
        fail(
            "isa-matmul-shape",
            f"dst {dst!r} has the free sizes {sizes[0]}, moving {moving!r} {sizes[1]}",
        )


def check_comparison(op) -> None:
    """Refuse a comparison that affine_select has no code of."""
    if op.name not in COMPARISONS:
        fail("isa-comparison", f"cmp_op={op!r}; one of {', '.join(COMPARISONS)}")


def note_reads(operands) -> None:
    """Remember what an instruction reads of PSUM."""
    for tensor in operands:
        if tensor.space == "psum":
            storage = tensor.storage
            if storage.seen is None:
                storage.seen = np.zeros(storage.size, np.bool_)
            tensor.view_of(storage.seen)[...] = True


def note_product(dst: Tensor, accumulated) -> None:
    """Warn where a matmul adds to what was read since it was started; then forget those reads.

    `accumulated`: which elements it adds to, or False where it overwrites.
    """
    if dst.storage.seen is None:
        return
    seen = dst.view_of(dst.storage.seen)
    if np.any(seen & accumulated):
        warnings.warn(
            f"a matmul accumulates on {dst!r}, which was read since its group started; whether a "
            "device keeps the group open is not documented",
            IsaWarning,
            stacklevel=3,
        )
    seen[...] = False
