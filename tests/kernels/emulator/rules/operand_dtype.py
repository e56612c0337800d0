"""Operand dtypes are those the instruction lists."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    half = nl.ndarray((128, 64), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.tensor_copy(half, tile)
    product = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(product, half, half)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_mixed_matmul(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    half = nl.ndarray((128, 64), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.tensor_copy(half, tile)
    product = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(product, half, tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_matmul_output(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    product = nl.ndarray((64, 64), dtype=nl.bfloat16, buffer=nl.psum)
    nisa.nc_matmul(product, tile, tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_matmul_integers(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    ints = nl.ndarray((128, 64), dtype=nl.int32, buffer=nl.sbuf)
    nisa.memset(ints, 1)
    product = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(product, ints, ints)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_half_operand0(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    half = nl.ndarray((128, 1), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.memset(half, 1.0)
    nisa.tensor_scalar(tile, tile, nl.add, half)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_transpose_cast(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    half = nl.ndarray((64, 128), dtype=nl.bfloat16, buffer=nl.psum)
    nisa.nc_transpose(half, tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_float_predicate(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    mask = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(mask, 1.0)
    nisa.tensor_copy_predicated(tile, tile, mask)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_predicated_cast(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    mask = nl.ndarray((128, 64), dtype=nl.uint8, buffer=nl.sbuf)
    nisa.memset(mask, 1)
    half = nl.ndarray((128, 64), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.memset(half, 1.0)
    nisa.tensor_copy_predicated(tile, half, mask)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_shuffle_cast(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    half = nl.ndarray((128, 64), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.memset(half, 1.0)
    nisa.nc_stream_shuffle(tile, half, [0] * 32)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_bits_of_floats(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_tensor(tile, tile, tile, nl.bitwise_and)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_float_select(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    mask = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(mask, 1.0)
    nisa.select_reduce(tile, mask, tile, 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_integer_select(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    mask = nl.ndarray((128, 64), dtype=nl.uint8, buffer=nl.sbuf)
    nisa.memset(mask, 1)
    ints = nl.ndarray((128, 64), dtype=nl.int32, buffer=nl.sbuf)
    nisa.memset(ints, 1)
    nisa.select_reduce(tile, mask, ints, 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_integer_range_select(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    ints = nl.ndarray((128, 64), dtype=nl.int32, buffer=nl.sbuf)
    nisa.memset(ints, 1)
    nisa.range_select(tile[:, 1:64], ints[:, 1:64], nl.greater, nl.less, tile[:, 0:1], tile[:, 0:1])
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_integer_cumulative(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    ints = nl.ndarray((128, 64), dtype=nl.int32, buffer=nl.sbuf)
    nisa.memset(ints, 1)
    nisa.tensor_scalar_cumulative(tile, ints, nl.add, nl.add, 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_tfloat32_bias(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    short = nl.ndarray((128, 1), dtype=nl.tfloat32, buffer=nl.sbuf)
    nisa.memset(short, 1.0)
    nisa.activation(tile, nl.exp, tile, bias=short)
    nisa.dma_copy(dst=out, src=tile)
    return out
