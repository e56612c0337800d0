"""Functions of a kernel are module-level."""

# ruff: noqa: E731 - a lambda with a name is what one kernel is refused for
import nki
import nki.isa as nisa
import nki.language as nl


def double(tile):
    nisa.tensor_scalar(tile, tile, nl.multiply, 2.0)


@nki.jit
def accept(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    double(tile)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def accept_nested_v0_6(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)

    def clear():
        nisa.memset(tile, 0.0)

    clear()
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_nested_v0_5(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)

    def clear():
        nisa.memset(tile, 0.0)

    clear()
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def reject_lambda(x):
    out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    sizes = lambda i: i
    nisa.memset(tile[:, 0 : sizes(2)], 0.0)
    nisa.dma_copy(dst=out, src=tile)
    return out
