"""More than 64 partitions start at 0, 33 to 64 at 0 or 64, up to 32 at 0, 32, 64 or 96."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(tile[32:64, :], tile[32:64, :], nl.multiply, 2.0)
    nisa.tensor_scalar(tile[64:128, :], tile[64:128, :], nl.multiply, 2.0)
    nisa.tensor_scalar(tile[96:97, :], tile[96:97, :], nl.multiply, 2.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_odd_start(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(tile[16:32, :], tile[16:32, :], nl.multiply, 2.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_64_at_32(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(tile[32:96, :], tile[32:96, :], nl.multiply, 2.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_96_at_32(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(tile[32:128, :], tile[32:128, :], nl.multiply, 2.0)
    nisa.dma_copy(dst=out, src=tile)
    return out
