"""Each operand is in a memory that the instruction and its engine can reach."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    bank = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.tensor_copy(bank, tile)
    nisa.activation(tile, nl.exp, bank, scale=0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_matmul_to_sbuf(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    other = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.nc_matmul(other, tile, tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_matmul_from_psum(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    bank = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.tensor_copy(bank, tile)
    product = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(product, bank, tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_gpsimd_psum(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    bank = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.iota(bank, [[1, 64]])
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_gpsimd_copy_from_psum(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    bank = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.memset(bank, 0.0)
    nisa.tensor_copy(tile, bank, engine=nisa.engine.gpsimd)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_dma_from_psum(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    bank = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.memset(bank, 0.0)
    nisa.dma_copy(dst=tile, src=bank)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_engine_on_hbm(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_copy(tile, x)
    nisa.dma_copy(dst=out, src=tile)
    return out
