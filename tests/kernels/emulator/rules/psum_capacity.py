"""PSUM holds 8 banks of 2 KiB per partition."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    for _ in range(9):
        bank = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.psum)
        nisa.memset(bank, 1.0)
        nisa.tensor_copy(tile, bank[:, 0:64])
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_one_tensor(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nl.ndarray((128, 8 * 512 + 1), dtype=nl.float32, buffer=nl.psum)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_alive_at_once(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    banks = []
    for _ in range(9):
        bank = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.psum)
        nisa.memset(bank, 1.0)
        banks.append(bank)
    for i in range(9):
        nisa.tensor_copy(tile[:, 0:1], banks[i])
    nisa.dma_copy(dst=out, src=tile)
    return out
