"""Keys of dictionaries are strings."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    sizes = {"rows": 2}
    nisa.memset(tile[:, 0 : sizes["rows"]], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_tuple(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    sizes = {(0, 1): 2}
    nisa.memset(tile[:, 0 : sizes[0, 1]], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_int(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    sizes = {0: 2}
    nisa.memset(tile[:, 0 : sizes[0]], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out
