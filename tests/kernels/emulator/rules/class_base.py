"""Classes of a kernel inherit from NKIObject and nothing else, or are enumerations."""

import nki
import nki.isa as nisa
import nki.language as nl


class Scales(nl.NKIObject):
    def __init__(self, factor):
        self.factor = factor


class Derived(Scales):
    def __init__(self, factor):
        self.factor = factor


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    scales = Scales(2.0)
    nisa.tensor_scalar(tile, tile, nl.multiply, scales.factor)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    scales = Derived(2.0)
    nisa.tensor_scalar(tile, tile, nl.multiply, scales.factor)
    nisa.dma_copy(dst=out, src=tile)
    return out
