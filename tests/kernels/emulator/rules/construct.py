"""The language is the documented subset of Python."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    count = 0
    while count < 2:
        count += 1
    for size in (1, 2):
        nisa.memset(tile[:, 0:size], 0.0 if size == 1 else 1.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_try(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    try:
        nisa.memset(tile, 0.0)
    except ValueError:
        pass
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_walrus(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    if (count := 2) > 1:
        nisa.memset(tile[:, 0:count], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_starred(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(*(tile, 0.0))
    nisa.dma_copy(dst=out, src=tile)
    return out
