"""Two tensor inputs of a VectorE instruction are not both in PSUM."""

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
    nisa.tensor_tensor(tile, bank, tile, nl.add)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_tensor_tensor(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    bank = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.tensor_copy(bank, tile)
    nisa.tensor_tensor(tile, bank, bank, nl.add)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_scalar_tensor_tensor(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    bank = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.tensor_copy(bank, tile)
    nisa.scalar_tensor_tensor(tile, bank, nl.multiply, 2.0, nl.add, bank)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_scan(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    bank = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.tensor_copy(bank, tile)
    nisa.tensor_tensor_scan(tile, bank, bank, 0.0, nl.multiply, nl.add)
    nisa.dma_copy(dst=out, src=tile)
    return out
