"""With LNC 2 both cores run the same sequence of instructions."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept_lnc2(x):
    rank = nl.program_id(axis=0)
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x[rank * 64 : rank * 64 + 64, :])
    nisa.tensor_scalar(tile, tile, nl.multiply, rank + 1.0)
    nisa.dma_copy(dst=out[rank * 64 : rank * 64 + 64, :], src=tile)
    return out


@nki.jit
def reject_lnc2(x):
    rank = nl.program_id(axis=0)
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x[rank * 64 : rank * 64 + 64, :])
    if rank == 1:
        nisa.tensor_scalar(tile, tile, nl.multiply, 2.0)
    nisa.dma_copy(dst=out[rank * 64 : rank * 64 + 64, :], src=tile)
    return out


@nki.jit
def reject_allocation_lnc2(x):
    rank = nl.program_id(axis=0)
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x[rank * 64 : rank * 64 + 64, :])
    scratch = nl.ndarray((64, 64 + rank), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=scratch[:, 0:64], src=tile)
    nisa.dma_copy(dst=out[rank * 64 : rank * 64 + 64, :], src=tile)
    return out
