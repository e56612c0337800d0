"""NKI before 0.7 has no comprehensions and no generators."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    sizes = []
    for i in range(3):
        sizes.append(i)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_list(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    sizes = [i for i in range(3)]
    nisa.memset(tile[:, 0 : len(sizes)], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_generator(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    total = sum(i for i in range(3))
    nisa.memset(tile[:, 0:total], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out
