"""The operator is one that the instruction and engine support."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(
        tile, tile, nl.multiply, 2.0, op1=nl.add, operand1=1.0, engine=nisa.engine.scalar
    )
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_scalar_engine(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(tile, tile, nl.subtract, 2.0, engine=nisa.engine.scalar)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_gpsimd_engine(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(tile, tile, nl.multiply, 2.0, engine=nisa.engine.gpsimd)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_mixed_kinds(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    ints = nl.ndarray((128, 64), dtype=nl.int32, buffer=nl.sbuf)
    nisa.memset(ints, 1)
    nisa.tensor_scalar(ints, ints, nl.bitwise_and, 1, op1=nl.add, operand1=1.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_activation(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.activation(tile, nl.add, tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_reduction(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_reduce(tile[:, 0:1], nl.equal, tile[:, 1:64], axis=1)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_activation_reduce_maximum(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.activation_reduce(tile[:, 1:64], nl.copy, tile[:, 1:64], nl.maximum, tile[:, 0:1])
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_minimum_of_a_select(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    mask = nl.ndarray((128, 64), dtype=nl.uint8, buffer=nl.sbuf)
    nisa.memset(mask, 1)
    nisa.select_reduce(tile, mask, tile, 0.0, reduce_op=nl.minimum)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_idle_reduction(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar_reduce(
        tile[:, 1:64],
        tile[:, 1:64],
        nl.add,
        0.0,
        nl.add,
        tile[:, 0:1],
        reduce_cmd=nisa.reduce_cmd.idle,
    )
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_reset_of_a_cumulative(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar_cumulative(tile, tile, nl.add, nl.add, 0.0, reduce_cmd=nisa.reduce_cmd.reset)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_load_of_an_activation(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.activation(tile, nl.exp, tile, reduce_op=nl.add, reduce_cmd=nisa.reduce_cmd.load_reduce)
    nisa.dma_copy(dst=out, src=tile)
    return out
