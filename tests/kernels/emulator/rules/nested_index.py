"""Before 0.5 a slice cannot be sliced again."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept_v0_3(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile[0:64, 0:32], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def accept_v0_5(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile[0:64, :][:, 0:32], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_v0_3(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile[0:64, :][:, 0:32], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_v0_4(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile[0:64, :][:, 0:32], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out
