"""A kernel uses nki, its own functions, plain built-ins and math."""

import math

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile[:, 0 : min(3, max(1, 2))], math.sqrt(2.0))
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_library(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile, np.sqrt(2.0))
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_reflection(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.memset(tile, getattr(nl, "pi", 0.0))
    nisa.dma_copy(dst=out, src=tile)
    return out
