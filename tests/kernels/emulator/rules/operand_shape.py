"""Operands have the same number of partitions and of elements per partition."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    other = nl.ndarray((128, 8, 8), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(other, tile)
    nisa.tensor_tensor(tile, tile, other, nl.add)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_free_broadcast(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_tensor(tile, tile, tile[:, 0:1], nl.add)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_partition_broadcast(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_tensor(tile, tile, tile[0:1, :], nl.add)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_shuffle(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.nc_stream_shuffle(tile[:, 0:2], tile[:, 2:6], [0] * 32)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_reduction(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_reduce(tile[:, 0:2], nl.add, tile[:, 2:64], axis=1)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_transpose(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    turned = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_transpose(turned, tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_statistics(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.bn_stats(tile[:, 0:5], tile[:, 6:64])
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_aggregate(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.bn_aggr(tile[:, 0:3], tile[:, 6:12])
    nisa.dma_copy(dst=out, src=tile)
    return out
