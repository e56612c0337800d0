"""Operands have the same number of partitions and of elements per partition."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    other = nl.ndarray((128, 8, 8), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(other, tile)
    nisa.tensor_tensor(tile, tile, other, nl.add)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_free_broadcast(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_tensor(tile, tile, tile[:, 0:1], nl.add)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_partition_broadcast(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_tensor(tile, tile, tile[0:1, :], nl.add)
    nisa.dma_copy(dst=out, src=tile)
    return out
