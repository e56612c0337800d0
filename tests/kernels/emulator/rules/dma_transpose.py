"""dma_transpose permutes (1,0), (2,1,0) or (3,1,2,0) into SBUF without a change of dtype."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    turned = nl.ndarray((64, 128), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_transpose(turned, x, axes=(1, 0), dge_mode=nisa.dge_mode.none)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def accept_rank_v0_3(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    turned = nl.ndarray((64, 128), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_transpose(turned, x.reshape((128, 1, 64)), axes=(2, 1, 0))
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_rank_v0_4(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    turned = nl.ndarray((64, 128), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_transpose(turned, x.reshape((128, 1, 64)), axes=(2, 1, 0))
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_axes(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    turned = nl.ndarray((64, 128), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_transpose(turned, x, axes=(0, 1))
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_dtype(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    turned = nl.ndarray((64, 128), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.dma_transpose(turned, x)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_hwdge_4_bytes(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    turned = nl.ndarray((64, 16), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_transpose(turned, x[0:16, :], dge_mode=nisa.dge_mode.hwdge)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_size_1_elsewhere_v0_4(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    turned = nl.ndarray((1, 64, 128), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_transpose(turned, x.reshape((128, 1, 64)), axes=(2, 1, 0))
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_shape(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    turned = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_transpose(turned, x)
    nisa.dma_copy(dst=out, src=tile)
    return out
