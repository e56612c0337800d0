"""A kernel calls plain functions, not other nki.jit kernels."""

import nki
import nki.isa as nisa
import nki.language as nl


def double(tile):
    nisa.tensor_scalar(tile, tile, nl.multiply, 2.0)


@nki.jit
def kernel(tile):
    nisa.tensor_scalar(tile, tile, nl.multiply, 2.0)


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    double(tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    kernel(tile)
    nisa.dma_copy(dst=out, src=tile)
    return out
