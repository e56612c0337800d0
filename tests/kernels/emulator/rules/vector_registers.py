"""VectorE's accumulator registers are undefined until an instruction resets or loads them."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    best = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
    low = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
    high = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(low, 0.0)
    nisa.memset(high, 9.0)
    other = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.range_select(other, tile, nl.greater_equal, nl.less, low, high)
    nisa.range_select(
        other, tile, nl.greater_equal, nl.less, low, high, nisa.reduce_cmd.reduce, best
    )
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_continue(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    total = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar_reduce(
        tile, tile, nl.add, 0.0, nl.add, total, reduce_cmd=nisa.reduce_cmd.reduce
    )
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_idle(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    mask = nl.ndarray((128, 64), dtype=nl.uint8, buffer=nl.sbuf)
    nisa.memset(mask, 1)
    best = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.select_reduce(tile, mask, tile, 0.0, best)
    nisa.dma_copy(dst=out, src=tile)
    return out
