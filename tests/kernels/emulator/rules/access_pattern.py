"""An access has at most 64 K elements per partition in SBUF and 4 K in PSUM."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    wide = nl.ndarray((128, 40 * 1024), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.memset(wide, 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_stride(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    wide = nl.ndarray((128, 2, 40 * 1024), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.memset(wide[:, :, 0:2], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_elements(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    wide = nl.ndarray((128, 2, 35 * 1024), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.memset(wide, 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_psum_elements(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    wide = nl.ndarray((128, 5000), dtype=nl.bfloat16, buffer=nl.psum)
    nisa.memset(wide, 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out
