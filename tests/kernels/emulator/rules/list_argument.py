"""Kernel arguments and their defaults are not lists."""

# ruff: noqa: B006 - a list as a default is what one kernel is refused for
import nki
import nki.isa as nisa
import nki.language as nl

# Compile-time arguments that the test passes to a kernel.
STATIC = {"reject_passed": {"sizes": [1, 1]}}


@nki.jit
def accept(x, sizes=(1, 1)):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=x)
    return out


@nki.jit
def reject(x, sizes=[1, 1]):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=x)
    return out


@nki.jit
def reject_passed(x, sizes=(1, 1)):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=x)
    return out
