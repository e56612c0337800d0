"""Only a location that a matmul wrote last may be accumulated on."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    product = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(product, tile, tile)
    nisa.nc_matmul(product, tile, tile)
    nisa.nc_matmul(product, tile, tile, accumulate=True)
    nisa.memset(product, 0.0)
    nisa.nc_matmul(product, tile, tile, accumulate=False)
    nisa.nc_matmul(product, tile, tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_on_memset(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    product = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.memset(product, 0.0)
    nisa.nc_matmul(product, tile, tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_true_on_memset(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    product = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.memset(product, 0.0)
    nisa.nc_matmul(product, tile, tile, accumulate=True)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_true_on_unwritten(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    product = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(product, tile, tile, accumulate=True)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_partly_overwritten(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    product = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(product, tile, tile)
    nisa.memset(product[:, 3:4], 0.0)
    nisa.nc_matmul(product, tile, tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_on_transpose(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    product = nl.ndarray((64, 128), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_transpose(product, tile)
    nisa.nc_matmul(product[:, 0:64], tile, tile)
    nisa.dma_copy(dst=out, src=tile)
    return out
