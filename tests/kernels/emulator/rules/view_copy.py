"""A view only re-reads its storage."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    wide = nl.ndarray((128, 8, 16), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(wide, 1.0)
    nisa.tensor_copy(tile, wide[:, 0:4, :].reshape((128, 64)))
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    wide = nl.ndarray((128, 8, 16), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(wide, 1.0)
    nisa.tensor_copy(tile, wide[:, :, 0:8].reshape((128, 64)))
    nisa.dma_copy(dst=out, src=tile)
    return out
