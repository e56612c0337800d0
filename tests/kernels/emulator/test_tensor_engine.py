"""TensorE's instructions against NumPy in float64, and what PSUM accumulates."""

import warnings

import numpy as np
import pytest

from qwen35.kernels import emulator

RNG = np.random.default_rng(1)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("k", "m", "n"), [(128, 128, 512), (32, 7, 1), (1, 128, 64), (96, 33, 5)])
def test_matmul_is_stationary_transposed_times_moving(run, k, m, n):
    a, b = normal(k, m), normal(k, n)
    body = """
        product = psum((a.shape[1], b.shape[1]))
        nisa.nc_matmul(product, load(a), load(b))
        result = sbuf(product.shape)
        nisa.tensor_copy(result, product)
        return output(result)
    """
    expected = a.T.astype(np.float64) @ b
    # float32 products and sums of at most 128 terms of order 1 reach 60; 1e-4 is 15 units there.
    np.testing.assert_allclose(run(body, a=a, b=b).outputs[0], expected, atol=1e-4)


def test_bfloat16_operands_are_rounded_and_sums_are_not(run):
    a, b = normal(128, 16), normal(128, 16)
    body = """
        left = sbuf(a.shape, nl.bfloat16)
        right = sbuf(b.shape, nl.bfloat16)
        nisa.tensor_copy(left, load(a))
        nisa.tensor_copy(right, load(b))
        product = psum((16, 16))
        nisa.nc_matmul(product, left, right)
        result = sbuf((16, 16))
        nisa.tensor_copy(result, product)
        return output(result)
    """
    outputs = run(body, a=a, b=b).outputs

    def bfloat16(x):
        # Seven mantissa bits: a unit in the last place is 2^-7 of the leading bit.
        scaled = x.astype(np.float64)
        unit = 2.0 ** (np.floor(np.log2(np.abs(scaled))) - 7)
        return np.round(scaled / unit) * unit

    expected = bfloat16(a).T @ bfloat16(b)
    np.testing.assert_allclose(outputs[0], expected, atol=2e-5)
    assert np.abs(outputs[0] - a.T.astype(np.float64) @ b).max() > 1e-3


def test_tfloat32_keeps_ten_mantissa_bits(run):
    x = np.full((1, 4), [[1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, -(1 + 2**-11)]], np.float32)
    body = """
        short = sbuf(x.shape, nl.tfloat32)
        nisa.tensor_copy(short, load(x))
        wide = sbuf(x.shape)
        nisa.tensor_copy(wide, short)
        return output(wide)
    """
    expected = [[1 + 2**-10, 1, 1 + 2 * 2**-10, -1]]  # ties go to the even neighbour
    np.testing.assert_array_equal(run(body, x=x).outputs[0], np.array(expected, np.float32))


def test_accumulation_is_per_location(run):
    """accumulate=None: the first write of each element overwrites, later ones add."""
    a, b = normal(64, 32), normal(64, 48)
    body = """
        left = load(a)
        right = load(b)
        product = psum((32, 48))
        nisa.nc_matmul(product[:, 0:16], left, right[:, 0:16])
        nisa.nc_matmul(product, left, right)
        nisa.nc_matmul(product[:, 32:48], left, right[:, 32:48], accumulate=False)
        nisa.nc_matmul(product[:, 32:48], left, right[:, 32:48], accumulate=True)
        result = sbuf((32, 48))
        nisa.tensor_copy(result, product)
        return output(result)
    """
    single = a.T.astype(np.float64) @ b
    expected = single * np.repeat([2, 1, 2], 16)
    np.testing.assert_allclose(run(body, a=a, b=b).outputs[0], expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_transpose_on_either_engine_moves_bits(run, dtype):
    bits = RNG.integers(0, 2**15, (32, 32))
    x = emulator.HostTensor.from_bits(bits, dtype)
    if dtype == "float32":
        x.cells[0, 1], x.cells[1, 0] = np.nan, np.inf
    body = """
        tile = load(x)
        first = psum((32, 32), x.dtype)
        nisa.nc_transpose(first, tile)
        second = sbuf((32, 32), x.dtype)
        nisa.nc_transpose(second, first, engine=nisa.engine.vector)
        third = psum((32, 32), x.dtype)
        nisa.nc_transpose(third, second, engine=nisa.engine.tensor)
        result = sbuf((32, 32), x.dtype)
        nisa.tensor_copy(result, third)
        return output(result)
    """
    simulation = run(body, x=x)
    wanted = x.cells.T
    if dtype == "bfloat16":
        wanted = (wanted.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(simulation.outputs[0], wanted)
    assert simulation.report.operations["tensor.nc_transpose"] == 2
    assert simulation.report.operations["vector.nc_transpose"] == 1


def test_transpose_flattens_free_dimensions(run):
    x = normal(8, 3, 5)
    body = """
        turned = psum((15, 8))
        nisa.nc_transpose(turned, load(x))
        result = sbuf((15, 8))
        nisa.tensor_copy(result, turned)
        return output(result)
    """
    np.testing.assert_array_equal(run(body, x=x).outputs[0], x.reshape(8, 15).T)


def test_matmul_as_transpose_needs_the_identity(run):
    x = normal(64, 16)
    body = """
        turned = psum((16, 64))
        moving = nl.shared_identity_matrix(64, dtype=nl.float32)
        if wrong:
            moving = load(ones)
        nisa.nc_matmul(turned, load(x), moving, is_transpose=True)
        result = sbuf((16, 64))
        nisa.tensor_copy(result, turned)
        return output(result)
    """
    ones = np.ones((64, 64), np.float32)
    np.testing.assert_array_equal(run(body, x=x, ones=ones, wrong=False).outputs[0], x.T)
    with pytest.raises(emulator.NotModelledError, match="identity"):
        run(body, x=x, ones=ones, wrong=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("nisa.nc_matmul(p, t, t, perf_mode=nisa.matmul_perf_mode.double_row)", "fp8"),
        ("nisa.nc_matmul(p, t[0:32, :], t[32:64, :])", "same rows"),
        ("nisa.nc_matmul(p, t, t, accumulate=1)", "accumulate must be"),
    ],
)
def test_what_is_not_modelled_is_refused(run, call, message):
    body = f"""
        t = load(x)
        p = psum((64, 64))
        {call}
    """
    with pytest.raises(emulator.NotModelledError, match=message):
        run(body, x=normal(64, 64))


def test_strictness_isa_warns_of_accumulating_on_what_was_read(run):
    body = """
        left = load(x)
        bank = psum((64, 64))
        nisa.nc_matmul(dst=bank, stationary=left, moving=left, accumulate=False)
        tile = sbuf((64, 64))
        nisa.tensor_copy(dst=tile, src=bank)
        nisa.nc_matmul(dst=bank, stationary=left, moving=left, accumulate={again})
        nisa.tensor_copy(dst=tile, src=bank)
        return output(tile)
    """
    x = np.ones((128, 64), np.float32)
    with pytest.warns(emulator.IsaWarning, match="read since its group started"):
        out = run(body.format(again=True), x=x, strictness="isa").outputs[0]
    np.testing.assert_array_equal(out, 256)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(body.format(again=True), x=x)
        run(body.format(again=False), x=x, strictness="isa")


def test_an_unknown_strictness_is_refused(run):
    with pytest.raises(emulator.EmulatorError, match="strictness must be one of"):
        run("return output(load(x))", x=np.ones((4, 4), np.float32), strictness="hardware")
