"""tile_size and tile_position come together."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    product = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        product, tile[64:96, :], tile[64:96, :], tile_position=(64, 0), tile_size=(32, 128)
    )
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_size_alone(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    product = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(product, tile[0:32, :], tile[0:32, :], tile_size=(32, 128))
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_too_many_rows(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    product = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(product, tile[0:64, :], tile[0:64, :], tile_position=(0, 0), tile_size=(32, 128))
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_columns(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    product = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(product, tile[0:32, :], tile[0:32, :], tile_position=(0, 64), tile_size=(32, 64))
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_position(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    product = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        product, tile[0:32, :], tile[0:32, :], tile_position=(16, 0), tile_size=(32, 128)
    )
    nisa.dma_copy(dst=out, src=tile)
    return out
