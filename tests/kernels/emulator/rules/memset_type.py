"""memset is strictly typed."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    ints = nl.ndarray((128, 64), dtype=nl.int32, buffer=nl.sbuf)
    nisa.memset(ints, 2)
    nisa.memset(tile, 2)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_float(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    ints = nl.ndarray((128, 64), dtype=nl.int32, buffer=nl.sbuf)
    nisa.memset(ints, 2.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_range(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    ints = nl.ndarray((128, 64), dtype=nl.uint8, buffer=nl.sbuf)
    nisa.memset(ints, 256)
    nisa.dma_copy(dst=out, src=tile)
    return out
