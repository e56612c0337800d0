"""Without a barrier a core neither reads nor overwrites what the other core wrote."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept_lnc2(x):
    rank = nl.program_id(axis=0)
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x[rank * 64 : rank * 64 + 64, :])
    nisa.tensor_scalar(tile, tile, nl.multiply, 2.0)
    nisa.dma_copy(dst=out[rank * 64 : rank * 64 + 64, :], src=tile)
    return out


@nki.jit
def reject_write_lnc2(x):
    rank = nl.program_id(axis=0)
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x[rank * 64 : rank * 64 + 64, :])
    nisa.dma_copy(dst=out[0:64, :], src=tile)
    nisa.dma_copy(dst=out[rank * 64 : rank * 64 + 64, :], src=tile)
    return out


@nki.jit
def reject_read_lnc2(x):
    rank = nl.program_id(axis=0)
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x[rank * 64 : rank * 64 + 64, :])
    scratch = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    if rank == 0:
        nisa.dma_copy(dst=scratch, src=tile)
    if rank == 1:
        nisa.dma_copy(dst=tile, src=scratch)
    nisa.dma_copy(dst=out[rank * 64 : rank * 64 + 64, :], src=tile)
    return out
