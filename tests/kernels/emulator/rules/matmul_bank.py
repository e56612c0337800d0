"""On trn2 a matmul's output lies in one PSUM bank."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    banks = nl.ndarray((64, 2, 512), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(banks[:, 1, 448:512], tile, tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    banks = nl.ndarray((64, 1024), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(banks[:, 480:544], tile, tile)
    nisa.dma_copy(dst=out, src=tile)
    return out
