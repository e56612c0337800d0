"""Per-partition operands (operand0, bias, scale, initial, reduce_res) are [P, 1]."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(tile[:, 1:64], tile[:, 1:64], nl.add, tile[:, 0:1])
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_row(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(tile[:, 2:64], tile[:, 2:64], nl.add, tile[:, 0:2])
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_partition_0(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.activation(tile[:, 1:64], nl.copy, tile[:, 1:64], bias=tile[0:1, 0:1])
    nisa.dma_copy(dst=out, src=tile)
    return out
