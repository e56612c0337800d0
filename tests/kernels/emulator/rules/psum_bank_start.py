"""PSUM tensors start at a bank boundary."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    bank = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.psum, address=(0, 2048))
    nisa.memset(bank, 1.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    bank = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.psum, address=(0, 1024))
    nisa.memset(bank, 1.0)
    nisa.dma_copy(dst=out, src=tile)
    return out
