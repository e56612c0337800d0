"""An access pattern is the same in every partition and partitions are contiguous."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    other = nl.ndarray((128, 32), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(other, tile[:, ::2])
    nisa.tensor_copy(tile[:, 0:32], other)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_step(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile[0:128:2, :], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_ap(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile.ap([[128, 64], [1, 64]]), 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_reshape(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile.reshape((64, 128)), 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_permute(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile.permute((1, 0)), 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_broadcast(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_copy(tile, tile[0:1, :].broadcast(0, 128))
    nisa.dma_copy(dst=out, src=tile)
    return out
