"""The pattern's sizes multiply to the elements per partition and it has at most 4 pairs."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.iota(tile, [[8, 8], [1, 8]])
    nisa.affine_select(tile, [[-1, 64]], 1, tile, 0.0, cmp_op=nl.greater_equal)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_count(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.iota(tile, [[1, 63]])
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_dimensions(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.iota(tile, [[1, 4], [1, 2], [1, 2], [1, 2], [1, 2]])
    nisa.dma_copy(dst=out, src=tile)
    return out
