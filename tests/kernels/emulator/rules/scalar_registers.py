"""ScalarE's reduce registers are undefined until reset."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.activation(
        tile[:, 2:64],
        nl.copy,
        tile[:, 2:64],
        reduce_op=nl.add,
        reduce_cmd=nisa.reduce_cmd.reset_reduce,
    )
    nisa.activation(
        tile[:, 2:64],
        nl.copy,
        tile[:, 2:64],
        reduce_op=nl.add,
        reduce_cmd=nisa.reduce_cmd.reduce,
        reduce_res=tile[:, 0:1],
    )
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_reduce(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.activation(tile, nl.copy, tile, reduce_op=nl.add, reduce_cmd=nisa.reduce_cmd.reduce)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_read(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.activation(tile[:, 1:64], nl.copy, tile[:, 1:64], reduce_res=tile[:, 0:1])
    nisa.dma_copy(dst=out, src=tile)
    return out
