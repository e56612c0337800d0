"""NKI 0.3 to 0.6 has no '*' separator in signatures."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x, scale=2.0):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=x)
    return out


@nki.jit
def reject(x, *, scale=2.0):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=x)
    return out
