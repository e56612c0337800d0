"""An instruction writes each element once."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    column = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(column, 3.0)
    nisa.tensor_copy(tile, column.ap([[1, 128], [0, 64]]))
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_stride_0(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    column = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(column.ap([[1, 128], [0, 64]]), tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_overlap(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile.ap([[64, 128], [1, 8], [1, 8]]), 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out
