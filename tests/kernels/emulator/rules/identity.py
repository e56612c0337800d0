"""NKI 0.3 to 0.6 has no 'is' and 'is not'."""

# ruff: noqa: E711 - `== None` is what the kernels are about
import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    option = None
    if option == None:
        nisa.memset(tile, 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    option = None
    if option is None:
        nisa.memset(tile, 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_not(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    option = None
    if option is not None:
        nisa.memset(tile, 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out
