"""ScalarE, GpSimd and DMA against NumPy."""

import math

import numpy as np
import pytest

from qwen35.kernels import emulator

RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


FUNCTIONS = {
    "copy": lambda x: x,
    "square": lambda x: x * x,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "softplus": lambda x: math.log1p(math.exp(x)),
    "exp": math.exp,
    "log": math.log,
    "sin": math.sin,
    "arctan": math.atan,
    "sqrt": math.sqrt,
    "rsqrt": lambda x: x**-0.5,
    "reciprocal": lambda x: 1 / x,
    "sign": lambda x: math.copysign(1.0, x) if x else 0.0,
    "abs": abs,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation_applies_scale_then_bias(run, name):
    x, bias = np.abs(normal(16, 9)) * 0.3, np.full((16, 1), 0.25, np.float32)
    body = f"""
        result = sbuf(x.shape)
        nisa.activation(result, nl.{name}, load(x), bias=load(bias), scale=0.5)
        constant = sbuf(x.shape)
        nisa.activation(constant, nl.{name}, load(x), bias=0.25, scale=0.5)
        return output(result), output(constant)
    """
    result, constant = run(body, x=x, bias=bias).outputs
    expected = np.vectorize(FUNCTIONS[name], otypes=[float])(x.astype(np.float64) * 0.5 + 0.25)
    np.testing.assert_allclose(result, expected, rtol=2e-6)
    np.testing.assert_array_equal(result, constant)


def test_activation_of_extreme_values_stays_finite(run):
    x = np.array([[-200.0, -50.0, 0.0, 50.0, 88.0]], np.float32)
    body = """
        first = sbuf(x.shape)
        nisa.activation(first, nl.sigmoid, load(x))
        second = sbuf(x.shape)
        nisa.activation(second, nl.softplus, load(x))
        third = sbuf(x.shape)
        nisa.activation(third, nl.exp, load(x))
        return output(first), output(second), output(third)
    """
    sigmoid, softplus, exp = run(body, x=x).outputs
    wide = x.astype(np.float64)
    expected = np.exp(np.minimum(wide, 0)) / (1 + np.exp(-abs(wide)))
    np.testing.assert_allclose(sigmoid, expected, rtol=1e-6, atol=1e-44)
    np.testing.assert_allclose(softplus, np.logaddexp(wide, 0), rtol=1e-6, atol=1e-44)
    np.testing.assert_allclose(exp, np.exp(wide), rtol=1e-5, atol=1e-44)


def test_activation_reduces_through_registers(run):
    x = normal(16, 9)
    body = """
        tile = load(x)
        scratch = sbuf(x.shape)
        total = sbuf((16, 1))
        nisa.activation_reduce(scratch, nl.square, tile, nl.add, total)
        twice = sbuf((16, 1))
        nisa.activation(
            scratch, nl.square, tile, reduce_op=nl.add, reduce_res=twice,
            reduce_cmd=nisa.reduce_cmd.reduce,
        )
        return output(total), output(twice)
    """
    total, twice = run(body, x=x).outputs
    expected = (x.astype(np.float64) ** 2).sum(1, keepdims=True)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(twice, 2 * expected, rtol=1e-6)


def test_iota_and_affine_select(run):
    x = normal(32, 32)
    body = """
        numbers = sbuf((32, 2, 3), nl.int32)
        nisa.iota(numbers, [[10, 2], [1, 3]], offset=5, channel_multiplier=100)
        lower = sbuf((32, 32))
        nisa.affine_select(lower, [[-1, 32]], 1, load(x), 0.0, cmp_op=nl.greater_equal)
        strict = sbuf((32, 32))
        nisa.affine_select(strict, [[-1, 32]], 1, load(x), 0.0, nl.greater_equal, -1)
        return output(numbers), output(lower), output(strict)
    """
    numbers, lower, strict = run(body, x=x).outputs
    p, i, j = np.mgrid[0:32, 0:2, 0:3]
    np.testing.assert_array_equal(numbers, 5 + 100 * p + 10 * i + j)
    np.testing.assert_array_equal(lower, np.tril(x))
    np.testing.assert_array_equal(strict, np.tril(x, -1))


def test_dma_reads_patterns_and_casts(run):
    x = normal(4, 3, 8)  # [B, H, D]
    body = """
        columns = sbuf((8, 12))
        nisa.dma_copy(dst=columns, src=x.ap([[1, 8], [24, 4], [8, 3]]))
        spread = sbuf((64, 8))
        nisa.dma_copy(dst=spread, src=x.ap([[0, 64], [1, 8]], offset=16))
        half = sbuf((12, 8), nl.bfloat16)
        nisa.dma_copy(dst=half, src=x)
        corner = sbuf((12, 8))
        nisa.dma_copy(dst=corner, src=x)
        nisa.dma_copy(dst=corner[5:6, 2:4], src=x[0, 0, 0:2])
        return output(columns), output(spread), output(half), output(corner)
    """
    columns, spread, half, corner = run(body, x=x).outputs
    np.testing.assert_array_equal(columns, x.reshape(12, 8).T)
    np.testing.assert_array_equal(spread, np.tile(x[0, 2], (64, 1)))
    assert np.abs(half - x.reshape(12, 8)).max() <= 2.0**-8 * np.abs(x).max()
    expected = x.reshape(12, 8).copy()
    expected[5, 2:4] = x[0, 0, 0:2]
    np.testing.assert_array_equal(corner, expected)


def test_dma_transposes(run):
    x, y = normal(5, 7), normal(4, 3, 6)
    z = normal(2, 3, 4, 5)
    body = """
        two = sbuf((7, 5))
        nisa.dma_transpose(two, x)
        three = sbuf((6, 3, 4))
        nisa.dma_transpose(three, y, axes=(2, 1, 0))
        four = sbuf((5, 3, 4, 2))
        nisa.dma_transpose(four, z, axes=(3, 1, 2, 0))
        return output(two), output(three), output(four)
    """
    two, three, four = run(body, x=x, y=y, z=z).outputs
    np.testing.assert_array_equal(two, x.T)
    np.testing.assert_array_equal(three, y.transpose(2, 1, 0))
    np.testing.assert_array_equal(four, z.transpose(3, 1, 2, 0))


@pytest.mark.parametrize(
    "call",
    [
        "nisa.dma_copy(dst=t, src=x, oob_mode=nisa.oob_mode.skip)",
        "nisa.dma_copy(dst=t, src=x, priority=1)",
        "nisa.dma_copy(dst=t, src=x.ap([[8, 4], [1, 8]], scalar_offset=t))",
        "nisa.dma_transpose(sbuf((8, 4)), x, dge_mode=nisa.dge_mode.swdge)",
        "nisa.activation(t, nl.gelu, t)",
        "nisa.tensor_copy_predicated(t, 1.0, sbuf((4, 8), nl.uint8))",
        "nisa.max8(t, t)",
        "nisa.tensor_reduce(t[:, 0:1], nl.subtract, t[:, 1:8], axis=1)",
        "nisa.tensor_reduce(t[:, 0:1], nl.bitwise_and, t[:, 1:8], axis=1)",
        "sbuf((4, nl.tile_size.sbuf_fmax))",
        "nl.fori_loop(0, 4, load)",
        "nl.add(t, t)",
        "t.view(nl.int32)",
        "t.vector_select(0, t)",
        "nl.ndarray((4, 4), dtype=nl.float8_e4m3)",
    ],
)
def test_what_is_not_modelled_is_refused(run, call):
    body = f"""
        t = load(x)
        {call}
        return output(t)
    """
    with pytest.raises(emulator.NotModelledError):
        run(body, x=normal(4, 8), version="0.6")


def test_exp_can_be_off_as_a_table_is(run):
    body = """
        tile = load(x)
        nisa.activation(dst=tile, op=nl.{op}, data=tile)
        return output(tile)
    """
    x = np.concatenate([[0, -1e9], -np.geomspace(1e-6, 80, 510)]).astype(np.float32)[None]
    exact, noisy, again = (
        run(body.format(op="exp"), x=x, exp_error=error).outputs[0] for error in (0.0, 1e-5, 1e-5)
    )
    relative = (noisy.astype(np.float64) / np.maximum(exact, 1e-38) - 1)[0, 2:]
    assert noisy[0, 0] == 1 and noisy[0, 1] == 0
    assert np.abs(relative).max() < 1.02e-5
    assert relative.max() > 9e-6 and relative.min() < -9e-6 and abs(relative.mean()) < 1e-6
    np.testing.assert_array_equal(noisy, again)
    copies = [run(body.format(op="copy"), x=x, exp_error=error).outputs[0] for error in (0, 1e-5)]
    np.testing.assert_array_equal(*copies)
