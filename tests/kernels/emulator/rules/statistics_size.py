"""bn_stats takes 2 to 512 elements per partition, bn_aggr triples."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    stats = nl.ndarray((128, 6), dtype=nl.float32, buffer=nl.sbuf)
    nisa.bn_stats(stats, tile)
    nisa.bn_aggr(tile[:, 0:2], stats)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_stats(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    wide = nl.ndarray((128, 514), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(wide, 0.0)
    stats = nl.ndarray((128, 6), dtype=nl.float32, buffer=nl.sbuf)
    nisa.bn_stats(stats, wide)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_aggregate(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.bn_aggr(tile[:, 0:2], tile[:, 2:12])
    nisa.dma_copy(dst=out, src=tile)
    return out
