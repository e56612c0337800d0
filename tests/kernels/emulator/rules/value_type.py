"""Values are None, bool, 32-bit integers, float32, strings and tensors."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    assert 2147483647 > 0
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_integer(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    assert 4294967296 > 0
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_complex(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    assert 1j != 0
    nisa.dma_copy(dst=out, src=tile)
    return out
