"""Tensors hold no values when a kernel is specialised."""

# ruff: noqa: E711 - `== None` is what the kernels are about
import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    option = tile
    if option != None:
        nisa.memset(tile, 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_add(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_copy(tile, tile + tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_truth(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    if tile:
        nisa.memset(tile, 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_assignment(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    tile[0:32, :] = 0.0
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_loop(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    for row in tile:
        nisa.memset(row, 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out
