"""NKI before 0.7 has no raise."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    assert x.shape[0] == 128
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    if x.shape[0] != 128:
        raise ValueError
    nisa.dma_copy(dst=out, src=tile)
    return out
