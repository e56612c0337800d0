"""engine= names an engine that can run this instruction with these operators."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_copy(tile[:, 0:32], tile[:, 32:64], engine=nisa.engine.scalar)
    nisa.memset(tile, 0.0, engine=nisa.engine.gpsimd)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_memset_scalar(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile, 0.0, engine=nisa.engine.scalar)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_tensor_tensor_scalar(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_tensor(tile, tile, tile, nl.add, engine=nisa.engine.scalar)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_power_on_vector(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_tensor(tile, tile, tile, nl.power, engine=nisa.engine.vector)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_transpose_gpsimd(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    small = nl.ndarray((32, 32), dtype=nl.float32, buffer=nl.sbuf)
    nisa.nc_transpose(small, tile[0:32, 0:32], engine=nisa.engine.gpsimd)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_power_in_tensor_scalar(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(tile, tile, nl.power, 2.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_power_in_scalar_tensor_tensor(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.scalar_tensor_tensor(tile, tile, nl.power, 2.0, nl.add, tile)
    nisa.dma_copy(dst=out, src=tile)
    return out
