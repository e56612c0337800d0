"""NKI 0.7, whose kernels are specialised by running them, and names of tutorials and libraries."""

import numpy as np
import pytest

from qwen35.kernels import emulator

PYTHON = """
import nki
import nki.isa as nisa
import nki.language as nl
from nki.isa import constants as other_constants
from nki.isa.constants import dge_mode, engine


def double(tile, *, times=1, **options):
    if options:
        raise ValueError(options)
    for _ in range(times):
        nisa.tensor_tensor(dst=tile, data1=tile, data2=tile, op=nl.add)


def widths(size):
    yield from (size // 2, size - size // 2)


@nki.jit
def kernel(x, bias=None):
    tile = nl.load(x)
    assert bias is None
    starts = {(i,): sum(list(widths(x.shape[1]))[:i]) for i, _ in enumerate(widths(x.shape[1]))}
    add = lambda part: nisa.tensor_scalar(part, part, nl.add, 1.0, engine=engine.vector)
    for (i,), start in starts.items():
        add(tile[:, start : start + list(widths(x.shape[1]))[i]])
    double(tile, times=2)
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=tile, dge_mode=dge_mode.none)
    return out
"""


def test_0_7_runs_a_kernel_that_is_python():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    kernel = emulator.load(PYTHON, "kernel")
    out = emulator.simulate(kernel, x, version="0.7").outputs[0]
    np.testing.assert_array_equal(out, 4 * (x + 1))
    with pytest.raises(emulator.LanguageError):
        emulator.simulate(kernel, x, version="0.6")


def test_0_7_still_holds_kernels_to_signatures_rules_and_tensors_without_values(run):
    x = np.ones((4, 4), np.float32)
    for body, error in (
        ("nisa.arange(4)", emulator.SignatureError),
        ("nisa.memset(x, 0.0)", emulator.RuleError),
        ("load(x) + 1", emulator.LanguageError),
    ):
        with pytest.raises(error):
            run(f"{body}\nreturn output(load(x))", x=x, version="0.7")
    with pytest.raises(emulator.NotModelledError, match=r"0\.3 to 0\.7"):
        run("return output(load(x))", x=x, version="0.8")


@pytest.mark.parametrize("version", ["0.3", "0.6", "0.7"])
def test_load_and_store_as_in_the_tutorials(run, version):
    x = np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 6)
    body = """
        out = nl.ndarray(x.shape, dtype=nl.bfloat16, buffer=nl.shared_hbm)
        part = nl.ndarray((2, 6), dtype=nl.float32, buffer=nl.shared_hbm)
        tile = nl.load(x, dtype=nl.bfloat16)
        nl.store(out, tile)
        nl.store(part[0:2, :], value=nl.load(x[1:3, :]))
        return out, part
    """
    simulation = run(body, x=x, version=version)
    np.testing.assert_array_equal(simulation.outputs[1], x[1:3])
    np.testing.assert_allclose(simulation.outputs[0], x, rtol=2**-8)
    assert simulation.report.operations == {"dma.dma_copy": 4}
    for wrong, error in (
        ("nl.load(tile)", emulator.RuleError),
        ("nl.store(tile, tile)", emulator.RuleError),
        ("nl.load(x[0])", emulator.NotModelledError),
    ):
        with pytest.raises(error):
            run(body.replace("nl.store(out, tile)", wrong), x=x, version=version)


@pytest.mark.parametrize("name", ["sum", "broadcast_to", "divide", "exp", "max", "softmax"])
def test_compute_functions_exist_and_are_not_modelled(run, name):
    with pytest.raises(emulator.NotModelledError, match=rf"nl\.{name}\(.*experimental"):
        run(f"t = load(x)\nnl.{name}(t)\nreturn output(t)", x=np.ones((4, 4), np.float32))
    with pytest.raises(emulator.EmulatorError):
        run(
            "t = load(x)\nnisa.tensor_tensor(t, t, t, nl.sum)\nreturn output(t)",
            x=np.ones((4, 4), np.float32),
        )


def test_the_size_of_sbuf_that_libraries_allocate_from(run):
    body = "return output(sbuf((1, nl.tile_size.total_available_sbuf_size)))"
    with pytest.raises(emulator.RuleError, match="229376"):  # four bytes each: too large
        run(body, x=np.ones((4, 4), np.float32))


def test_a_shuffle_in_place_moves_rows_within_a_tile(run):
    x = np.arange(32 * 5, dtype=np.float32).reshape(32, 5)
    body = """
        turned = load(x)
        nisa.nc_stream_shuffle(turned, turned, [31 - i for i in range(32)])
        spread = load(x)
        nisa.nc_stream_shuffle(spread[0:32, :], spread[0:1, :], [0] * 32)
        return output(turned), output(spread)
    """.replace("[31 - i for i in range(32)]", str([31 - i for i in range(32)]))
    turned, spread = run(body, x=x).outputs
    np.testing.assert_array_equal(turned, x[::-1])
    np.testing.assert_array_equal(spread, np.repeat(x[:1], 32, 0))
    with pytest.raises(emulator.RuleError, match="overlap but differ"):
        run(
            "t = load(x)\nnisa.nc_stream_shuffle(t[:, 0:4], t[:, 1:5], [0] * 32)\nreturn output(t)",
            x=x,
        )


def test_an_error_in_a_helper_names_the_caller_too():
    source = (
        PYTHON.partition("def double")[0]
        + """
def inner(tile):
    nisa.tensor_copy(dst=tile, src=tile, engine=nisa.engine.tensor)


def outer(tile):
    inner(tile)


@nki.jit
def kernel(x):
    tile = nl.load(x)
    outer(tile)
    return tile
"""
    )
    with pytest.raises(emulator.RuleError) as caught:
        emulator.simulate(emulator.load(source, "kernel"), np.ones((4, 4), np.float32))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("nisa.tensor_copy(dst=tile, src=tile, engine=nisa.engine.tensor)")
    assert lines[1].startswith("[engine]")
    assert [line.split(": ", 1)[1] for line in lines[2:]] == ["inner(tile)", "outer(tile)"]
    assert all(line.startswith("  called at <kernel>:") for line in lines[2:])


def test_what_0_7_adds_is_not_modelled_rather_than_unknown(run):
    x = np.ones((4, 4), np.float32)
    for call in ("nisa.NkiScalar()", "nisa.scalar_load(x)"):
        with pytest.raises(emulator.NotModelledError, match="is not modelled"):
            run(f"{call}\nreturn output(load(x))", x=x, version="0.7")
    configured = PYTHON.replace("@nki.jit", "@nki.jit(compile_config=None)")
    with pytest.raises(emulator.NotModelledError, match="compile_config"):
        emulator.load(configured, "kernel")
