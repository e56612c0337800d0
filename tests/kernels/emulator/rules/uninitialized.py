"""Storage that nothing has written has no value."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    other = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(other[:, 0:32], 0.0)
    nisa.memset(other[:, 32:64], 0.0)
    nisa.tensor_copy(tile, other)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_never_written(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    other = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(tile, other)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_one_element(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    other = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(other[:, 0:63], 0.0)
    nisa.memset(other[0:96, 63:64], 0.0)
    nisa.tensor_copy(tile, other)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_output(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out[0:127, :], src=x[0:127, :])
    return out


@nki.jit
def reject_bytes_taken_by_another(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    first = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf, address=(0, 0))
    second = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf, address=(0, 252))
    nisa.memset(first, 1.0)
    nisa.memset(second, 2.0)
    nisa.tensor_copy(tile[:, 0:63], first[:, 0:63])
    nisa.tensor_copy(tile[:, 63:64], first[:, 63:64])
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def accept_bytes_beside_another(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    first = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf, address=(0, 0))
    second = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf, address=(0, 252))
    nisa.memset(first, 1.0)
    nisa.memset(second, 2.0)
    nisa.tensor_copy(tile[:, 0:63], first[:, 0:63])
    nisa.tensor_copy(tile, second)
    nisa.dma_copy(dst=out, src=tile)
    return out
