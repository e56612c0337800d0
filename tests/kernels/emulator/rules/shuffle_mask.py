"""The shuffle mask has 32 entries, each 0 to 31 or 255."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.nc_stream_shuffle(tile, tile, [0] * 31 + [255])
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_length(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.nc_stream_shuffle(tile, tile, [0] * 31)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_entry(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.nc_stream_shuffle(tile, tile, [32] * 32)
    nisa.dma_copy(dst=out, src=tile)
    return out
