"""SBUF of trn2 holds 224 KiB per partition."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    big = nl.ndarray((128, 28 * 1024), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(big, 0.0)
    more = nl.ndarray((128, 28 * 1024), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(more, 0.0)
    nisa.tensor_copy(tile, more[:, 0:64])
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_one_tensor(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nl.ndarray((128, 57 * 1024), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_alive_at_once(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    big = nl.ndarray((128, 29 * 1024), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(big, 0.0)
    more = nl.ndarray((128, 28 * 1024), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(more, 0.0)
    nisa.tensor_copy(tile, big[:, 0:64])
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_address(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nl.ndarray((128, 2), dtype=nl.float32, buffer=nl.sbuf, address=(0, 224 * 1024 - 4))
    nisa.dma_copy(dst=out, src=tile)
    return out
