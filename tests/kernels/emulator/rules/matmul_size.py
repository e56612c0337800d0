"""Contraction at most 128, stationary free size at most 128, moving free size at most 512."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    wide = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(wide, 1.0)
    product = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(product, wide[:, 0:128], wide)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_stationary(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    wide = nl.ndarray((128, 129), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(wide, 1.0)
    product = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(product, wide, tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_moving(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    wide = nl.ndarray((128, 513), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(wide, 1.0)
    product = nl.ndarray((64, 513), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(product, tile, wide)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_contraction(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    product = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(product, tile[0:64, :], tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_output(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    product = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(product, tile, tile)
    nisa.dma_copy(dst=out, src=tile)
    return out
