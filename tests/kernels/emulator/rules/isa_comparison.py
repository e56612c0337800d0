"""affine_select compares by equal, not_equal, greater or greater_equal."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.affine_select(tile, [[1, 64]], -1, tile, 0.0, cmp_op=nl.not_equal)
    nisa.affine_select(tile, [[1, 64]], -1, tile, 0.0, cmp_op=nl.greater)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.affine_select(tile, [[1, 64]], -1, tile, 0.0, cmp_op=nl.less)
    nisa.dma_copy(dst=out, src=tile)
    return out
