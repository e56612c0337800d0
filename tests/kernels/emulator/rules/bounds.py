"""An access stays inside its tensor."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile[96:128, 60:64], 0.0)
    nisa.memset(tile[0:1, -4:], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_slice(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile[:, 60:65], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_index(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile[:, 64], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_ap(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile.ap([[64, 128], [1, 64]], offset=1), 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_reshape(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile.reshape((128, 65)), 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_too_many_indices(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile[:, 0, 0], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_empty_tensor(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nl.ndarray((128, 0), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_ap_beyond_a_partition(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile.ap([[64, 64], [1, 64]], offset=1), 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_dimension(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile.slice(2, 0, 1), 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_permute(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile.permute((0, 0)), 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_broadcast(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_copy(tile, tile.broadcast(1, 64))
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_expand_dim(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile.expand_dim(0), 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_squeeze_dim(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile.squeeze_dim(1), 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out
