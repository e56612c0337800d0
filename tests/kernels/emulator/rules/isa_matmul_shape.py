"""A matmul's destination has the free sizes of its moving operand."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    product = nl.ndarray((64, 512), dtype=nl.float32, buffer=nl.psum)
    moving = tile.ap(pattern=[[64, 128], [4, 16], [1, 2]])
    nisa.nc_matmul(product.ap(pattern=[[512, 64], [2, 16], [1, 2]]), tile, moving)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    product = nl.ndarray((64, 512), dtype=nl.float32, buffer=nl.psum)
    moving = tile.ap(pattern=[[64, 128], [4, 16], [1, 2]])
    nisa.nc_matmul(product[:, 0:32], tile, moving)
    nisa.dma_copy(dst=out, src=tile)
    return out
