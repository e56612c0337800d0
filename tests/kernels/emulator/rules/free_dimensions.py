"""An access pattern has at most 4 free dimensions."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    other = nl.ndarray((128, 2, 3, 2, 3, 2), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(other, 0.0)
    nisa.memset(other[:, 0:1, 0:1, 0:1, 0:2, 0:1], 1.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    other = nl.ndarray((128, 3, 3, 3, 3, 3), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(other[:, 0:2, 0:2, 0:2, 0:2, 0:2], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out
