"""The memories: one `Storage` per allocated tensor, with poison per element.

SBUF and PSUM are two-dimensional, [partitions, elements per partition]; HBM is flat. Cells hold
the dtype's bits; `written` says per element whether anything was stored there.
"""

from dataclasses import dataclass

import numpy as np

from .dtypes import DType


@dataclass(frozen=True, eq=False)
class Block:
    """What the report needs of an allocation after its cells are gone."""

    number: int
    name: str
    space: str  # "sbuf", "psum" or "hbm"
    partitions: int
    bytes_per_partition: int  # of HBM: all bytes, with partitions = 1
    itemsize: int
    line: int
    address: tuple[int, int] | None = None  # (partition, byte offset) when placed by hand


class Storage:
    """Cells of one allocation. `row` is the number of elements per partition (HBM: of all)."""

    __slots__ = (
        "block",
        "buffer",
        "cells",
        "dtype",
        "from_matmul",
        "full",
        "owner",
        "readonly",
        "rivals",
        "row",
        "seen",
        "shape",
        "shared",
        "size",
        "written",
    )

    def __init__(self, block: Block, shape: tuple[int, ...], dtype: DType):
        self.block = block
        self.buffer = None  # the nl.sbuf, nl.psum, … object that the kernel named
        self.shape = shape
        self.dtype = dtype
        self.size = int(np.prod(shape, dtype=np.int64))
        on_chip = block.space != "hbm"
        self.row = self.size // shape[0] if on_chip else self.size
        self.cells = np.empty(self.size, dtype.storage)
        self.written = np.zeros(self.size, np.bool_)
        # Every element was written. Reads then need no look at `written`, which may be stale.
        self.full = False
        self.from_matmul = np.zeros(self.size, np.bool_) if block.space == "psum" else None
        self.seen = None  # PSUM, strictness "isa": what was read since a matmul wrote it
        self.readonly = False
        self.shared = False  # allocated in nl.shared_hbm
        self.owner = None  # LNC 2, shared HBM: which core wrote each element
        # Hand-placed storages that share bytes: (storage, its box (p0, p1, lo, hi) in elements).
        self.rivals = []

    def fill(self, cells: np.ndarray):
        """Define every element from host data."""
        self.cells[:] = cells.reshape(-1)
        self.written[:] = True
        self.full = True

    def poison(self, box):
        """Forget the elements of a box: their bytes now hold another tensor."""
        p0, p1, lo, hi = box
        if self.full:
            self.written[:] = True
            self.full = False
        for flags in (self.written, self.from_matmul):
            if flags is not None:
                flags.reshape(-1, self.row)[p0:p1, lo:hi] = False
