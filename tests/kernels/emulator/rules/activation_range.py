"""Outside of its documented input range an activation function's result is invalid."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.activation(tile, nl.rsqrt, tile, scale=0.0, bias=4.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_rsqrt_of_0(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.activation(tile, nl.rsqrt, tile, scale=0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_log_of_negative(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.activation(tile, nl.log, tile, scale=0.0, bias=-1.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_sine_of_4(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.activation(tile, nl.sin, tile, scale=0.0, bias=4.0)
    nisa.dma_copy(dst=out, src=tile)
    return out
