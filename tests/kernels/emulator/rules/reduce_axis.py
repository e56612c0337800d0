"""tensor_reduce reduces the last free dimensions, never the partition dimension."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_reduce(tile[:, 0:1], nl.add, tile.reshape((128, 8, 8))[:, 1:8, :], axis=(1, 2))
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_partition(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_reduce(tile[0:1, :], nl.add, tile, axis=0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_middle(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_reduce(tile[:, 0:8], nl.add, tile.reshape((128, 8, 8)), axis=1)
    nisa.dma_copy(dst=out, src=tile)
    return out
