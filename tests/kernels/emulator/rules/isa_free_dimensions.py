"""An instruction takes as many free dimensions as its operands' fields have."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept_copy(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    five = nl.ndarray((128, 256), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(five, 1.0)
    four = [[256, 128], [64, 2], [16, 2], [4, 2], [1, 2]]
    other = nl.ndarray((128, 16), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=other, src=five.ap(pattern=four))
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def accept_tensor_tensor(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    five = nl.ndarray((128, 256), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(five, 1.0)
    three = five.ap(pattern=[[256, 128], [64, 2], [16, 2], [1, 2]])
    nisa.tensor_tensor(dst=three, data1=three, data2=three, op=nl.add)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_tensor_tensor(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    five = nl.ndarray((128, 256), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(five, 1.0)
    four = five.ap(pattern=[[256, 128], [64, 2], [16, 2], [4, 2], [1, 2]])
    nisa.tensor_tensor(dst=four, data1=four, data2=four, op=nl.add)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_affine_select(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    five = nl.ndarray((128, 256), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(five, 1.0)
    three = five.ap(pattern=[[256, 128], [64, 2], [16, 2], [1, 2]])
    nisa.affine_select(three, [[1, 8]], 0, three, 0.0, cmp_op=nl.greater_equal)
    nisa.dma_copy(dst=out, src=tile)
    return out
