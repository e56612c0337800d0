"""A transpose is at most 128 x 128 on TensorE and 32 x 32 on VectorE."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    turned = nl.ndarray((64, 128), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_transpose(turned, tile)
    nisa.nc_transpose(tile[0:32, 0:32], turned[0:32, 0:32], engine=nisa.engine.vector)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_vector(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    turned = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.nc_transpose(turned, tile[0:64, :], engine=nisa.engine.vector)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_tensor(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    wide = nl.ndarray((64, 256), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(wide, 0.0)
    turned = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_transpose(turned, wide[:, 0:129])
    nisa.dma_copy(dst=out, src=tile)
    return out
