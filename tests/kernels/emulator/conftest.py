"""Helpers of the emulator's tests."""

import textwrap

import pytest

from qwen35.kernels import emulator

_FRAME = """
import nki
import nki.isa as nisa
import nki.language as nl


def sbuf(shape, dtype=nl.float32):
    return nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf)


def psum(shape, dtype=nl.float32):
    return nl.ndarray(shape, dtype=dtype, buffer=nl.psum)


def load(source):
    tile = sbuf(source.shape, source.dtype)
    nisa.dma_copy(dst=tile, src=source)
    return tile


def output(tile):
    result = nl.ndarray(tile.shape, dtype=tile.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=result, src=tile)
    return result


@nki.jit
def kernel({parameters}):
{body}
"""


@pytest.fixture
def run():
    """run(body, **arrays): the Simulation of a kernel whose parameters are the arrays' names.

    `body` is its statements and may use sbuf(shape), psum(shape), load(x) and output(tile).
    """

    def simulate(body, version="0.5", lnc=1, strictness="documented", exp_error=0.0, **arguments):
        source = _FRAME.format(
            parameters=", ".join(arguments),
            body=textwrap.indent(textwrap.dedent(body).strip(), "    "),
        )
        kernel = emulator.load(source, "kernel")
        machine = {"strictness": strictness, "exp_error": exp_error}
        return emulator.simulate(kernel, version=version, lnc=lnc, **machine, **arguments)

    return simulate
