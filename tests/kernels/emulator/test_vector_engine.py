"""VectorE's instructions (and the engines that share them) against NumPy in float64."""

import numpy as np
import pytest

from qwen35.kernels import emulator

RNG = np.random.default_rng(2)
TOLERANCE = {"rtol": 3e-7, "atol": 5e-7}  # two float32 roundings of values up to 8


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


BINARY = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}


@pytest.mark.parametrize("name", BINARY)
def test_tensor_tensor(run, name):
    a = RNG.integers(-2, 3, (64, 33)).astype(np.float32)
    b = RNG.integers(-2, 3, (64, 33)).astype(np.float32)
    body = f"""
        result = sbuf(a.shape)
        nisa.tensor_tensor(result, load(a), load(b), nl.{name})
        return output(result)
    """
    expected = BINARY[name](a.astype(np.float64), b)
    np.testing.assert_array_equal(run(body, a=a, b=b).outputs[0], expected.astype(np.float32))


def test_power_and_exact_integers_run_on_gpsimd(run):
    a = RNG.integers(-(2**30), 2**30, (16, 8)).astype(np.int32)
    b = RNG.integers(-3, 4, (16, 8)).astype(np.int32)
    x = np.abs(normal(16, 8))
    body = """
        ints = load(a)
        nisa.tensor_tensor(ints, ints, load(b), nl.add)
        rounded = load(a)
        nisa.tensor_tensor(rounded, rounded, load(b), nl.add, engine=nisa.engine.vector)
        powers = sbuf(x.shape)
        nisa.tensor_tensor(powers, load(x), load(x), nl.power)
        return output(ints), output(rounded), output(powers)
    """
    (exact, rounded, powers), report = run(body, a=a, b=b, x=x)
    np.testing.assert_array_equal(exact, a + b)
    # Through float32 the lowest bits of a 30-bit integer are lost.
    expected = (a.astype(np.float32) + b.astype(np.float32)).astype(np.int32)
    np.testing.assert_array_equal(rounded, expected)
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(powers, x.astype(np.float64) ** x, rtol=1e-6)
    assert report.operations["gpsimd.tensor_tensor"] == 2


@pytest.mark.parametrize("reverse0", [False, True])
@pytest.mark.parametrize("reverse1", [False, True])
def test_tensor_scalar_order_of_operands(run, reverse0, reverse1):
    x, column = normal(32, 20), normal(32, 1)
    body = f"""
        result = sbuf(x.shape)
        nisa.tensor_scalar(
            result, load(x), nl.subtract, load(c), {reverse0}, nl.subtract, 3.0, {reverse1}
        )
        return output(result)
    """
    inner = column - x.astype(np.float64) if reverse0 else x.astype(np.float64) - column
    expected = 3 - inner if reverse1 else inner - 3
    np.testing.assert_allclose(run(body, x=x, c=column).outputs[0], expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("abs", np.abs),
        ("square", np.square),
        ("relu", lambda x: np.maximum(x, 0)),
        ("rsqrt", lambda x: x**-0.5),
        ("reciprocal", lambda x: 1 / x),
    ],
)
def test_unary_operators(run, name, function):
    x = np.abs(normal(8, 8)) + np.float32(0.1)
    body = f"""
        result = sbuf(x.shape)
        nisa.tensor_scalar(result, load(x), nl.{name}, 0.0)
        return output(result)
    """
    np.testing.assert_allclose(run(body, x=x).outputs[0], function(x.astype(np.float64)), rtol=5e-7)
    with pytest.raises(emulator.SignatureError, match="unary"):
        run(body.replace("0.0", "1.0"), x=x)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32"])
def test_bit_operators(run, dtype):
    a = RNG.integers(0, 100, (8, 8)).astype(dtype)
    b = RNG.integers(0, 100, (8, 8)).astype(dtype)
    body = """
        tile = load(a)
        nisa.tensor_tensor(tile, tile, load(b), nl.bitwise_xor)
        nisa.tensor_scalar(tile, tile, nl.bitwise_and, 7, op1=nl.left_shift, operand1=2)
        return output(tile)
    """
    np.testing.assert_array_equal(run(body, a=a, b=b).outputs[0], ((a ^ b) & 7) << 2)


@pytest.mark.parametrize("reverse1", [False, True])
@pytest.mark.parametrize("scalar", [True, False])
def test_scalar_tensor_tensor(run, reverse1, scalar):
    x, y, column = normal(32, 20), normal(32, 20), normal(32, 1)
    operand = "0.5" if scalar else "load(c)"
    body = f"""
        held = psum(y.shape)
        nisa.tensor_copy(held, load(y))
        result = sbuf(x.shape)
        nisa.scalar_tensor_tensor(
            result, load(x), nl.multiply, {operand}, nl.subtract, held, reverse1={reverse1}
        )
        return output(result)
    """
    inner = x.astype(np.float64) * (0.5 if scalar else column)
    expected = y - inner if reverse1 else inner - y
    np.testing.assert_allclose(run(body, x=x, y=y, c=column).outputs[0], expected, **TOLERANCE)


def test_copies_keep_bits_or_go_through_float32(run):
    x = np.array([[2**24 + 1, 2**31 - 1, -5]], np.int32)
    body = """
        tile = load(x)
        same = sbuf(x.shape, nl.int32)
        nisa.tensor_copy(same, tile)
        wide = sbuf(x.shape)
        nisa.tensor_copy(wide, tile)
        back = sbuf(x.shape, nl.int32)
        nisa.tensor_copy(back, wide)
        return output(same), output(wide), output(back)
    """
    same, wide, back = run(body, x=x).outputs
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(wide, [[2.0**24, 2.0**31, -5.0]])
    np.testing.assert_array_equal(back, [[2**24, 2**31 - 1, -5]])  # saturated


def test_reciprocal_and_predicated_copy(run):
    x = normal(16, 12) + 3
    mask = RNG.integers(0, 2, (16, 12)).astype(np.uint8)
    body = """
        tile = load(x)
        inverse = sbuf(x.shape)
        nisa.reciprocal(inverse, tile)
        nisa.tensor_copy_predicated(tile, inverse, load(mask))
        other = load(x)
        nisa.tensor_copy_predicated(other, inverse, load(mask), reverse_pred=True)
        return output(tile), output(other)
    """
    first, second = run(body, x=x, mask=mask).outputs
    inverse = 1 / x.astype(np.float64)
    np.testing.assert_allclose(first, np.where(mask, inverse, x), **TOLERANCE)
    np.testing.assert_allclose(second, np.where(mask, x, inverse), **TOLERANCE)


@pytest.mark.parametrize("negate", [False, True])
@pytest.mark.parametrize(
    ("op", "function"),
    [("add", np.sum), ("maximum", np.max), ("minimum", np.min), ("multiply", np.prod)],
)
def test_tensor_reduce(run, op, function, negate):
    x = normal(16, 3, 5)
    body = f"""
        tile = load(x)
        last = sbuf((16, 3))
        nisa.tensor_reduce(last, nl.{op}, tile, axis=2, negate={negate})
        both = sbuf((16, 1))
        nisa.tensor_reduce(both, nl.{op}, tile, axis=(1, 2), negate={negate})
        return output(last), output(both)
    """
    last, both = run(body, x=x).outputs
    sign = -1 if negate else 1
    wide = x.astype(np.float64)
    np.testing.assert_allclose(last, sign * function(wide, axis=2), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(both[:, 0], sign * function(wide, axis=(1, 2)), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("reverse0", [False, True])
@pytest.mark.parametrize("initial", ["1.5", "load(start)"])
def test_scan(run, reverse0, initial):
    a, b, start = normal(8, 30) * 0.9, normal(8, 30), normal(8, 1)
    body = f"""
        result = sbuf(a.shape)
        nisa.tensor_tensor_scan(
            result, load(a), load(b), {initial}, nl.subtract, nl.add, reverse0={reverse0}
        )
        return output(result)
    """
    state = start[:, 0].astype(np.float64) if "start" in initial else np.full(8, 1.5)
    expected = np.zeros(a.shape)
    for i in range(30):
        state = (state - a[:, i] if reverse0 else a[:, i] - state) + b[:, i]
        expected[:, i] = state
    np.testing.assert_allclose(
        run(body, a=a, b=b, start=start).outputs[0], expected, rtol=1e-5, atol=1e-5
    )


def test_cumulative(run):
    x = normal(8, 30)
    body = """
        tile = load(x)
        total = sbuf(x.shape)
        nisa.tensor_scalar_cumulative(total, tile, nl.multiply, nl.add, 2.0)
        best = sbuf(x.shape)
        nisa.tensor_scalar_cumulative(best, tile, nl.add, nl.maximum, 0.0)
        loaded = sbuf(x.shape)
        nisa.tensor_scalar_cumulative(
            loaded, tile, nl.add, nl.add, 0.0, 5.0, nisa.reduce_cmd.load_reduce
        )
        return output(total), output(best), output(loaded)
    """
    total, best, loaded = run(body, x=x).outputs
    wide = x.astype(np.float64)
    np.testing.assert_allclose(total, np.cumsum(2 * wide, 1), atol=1e-5)
    np.testing.assert_array_equal(best, np.maximum.accumulate(x, 1))
    np.testing.assert_allclose(loaded, 5 + np.cumsum(wide, 1), atol=1e-5)


def test_select_reduce(run):
    x, other = normal(16, 12), normal(16, 1)
    mask = RNG.integers(0, 2, (16, 12)).astype(np.int8)
    body = """
        tile = sbuf(x.shape)
        best = sbuf((16, 1))
        nisa.select_reduce(
            tile, load(mask), load(x), load(other), best, nisa.reduce_cmd.reset_reduce
        )
        swapped = sbuf(x.shape)
        nisa.select_reduce(swapped, load(mask), load(x), -1.0, reverse_pred=True)
        return output(tile), output(best), output(swapped)
    """
    tile, best, swapped = run(body, x=x, mask=mask, other=other).outputs
    np.testing.assert_array_equal(tile, np.where(mask, x, other))
    np.testing.assert_array_equal(best, np.where(mask, x, other).max(1, keepdims=True))
    np.testing.assert_array_equal(swapped, np.where(mask, -1, x))


def test_stream_shuffle_works_per_quadrant(run):
    x, y = normal(64, 6), normal(64, 6)
    mask = [*RNG.permutation(32)[:30].tolist(), 255, 255]
    body = f"""
        tile = load(y)
        nisa.nc_stream_shuffle(tile, load(x), {mask})
        broadcast = sbuf((128, 6))
        nisa.nc_stream_shuffle(broadcast[32:64, :], load(x)[0:32, :], [0] * 32)
        nisa.nc_stream_shuffle(broadcast[96:128, :], load(x)[0:1, :], [0] * 32)
        part = sbuf((32, 6))
        nisa.tensor_copy(part, broadcast[96:128, :])
        return output(tile), output(part)
    """
    tile, part = run(body, x=x, y=y).outputs
    expected = y.copy()
    for quadrant in (0, 32):
        for i, source in enumerate(mask):
            if source != 255:
                expected[quadrant + i] = x[quadrant + source]
    np.testing.assert_array_equal(tile, expected)
    np.testing.assert_array_equal(part, np.repeat(x[:1], 32, 0))
    with pytest.raises(emulator.NotModelledError, match="outside of it"):
        run(body.replace("load(x)[0:1, :], [0]", "load(x)[0:1, :], [1]"), x=x, y=y)


def test_range_select_and_its_registers(run):
    x = normal(16, 12)
    low, high = np.full((16, 1), 3, np.float32), np.arange(16, dtype=np.float32)[:, None]
    body = """
        first = sbuf((16, 6))
        second = sbuf((16, 6))
        best = sbuf((16, 1))
        tile = load(x)
        bounds = (load(low), load(high))
        nisa.range_select(
            first, tile[:, 0:6], nl.greater_equal, nl.less, bounds[0], bounds[1]
        )
        nisa.range_select(
            second, tile[:, 6:12], nl.greater_equal, nl.less, bounds[0], bounds[1],
            nisa.reduce_cmd.reduce, best, range_start=6,
        )
        return output(first), output(second), output(best)
    """
    first, second, best = run(body, x=x, low=low, high=high).outputs
    index = np.arange(12)[None]
    expected = np.where((index >= low) & (index < high), x, np.float32(-3.4028235e38))
    np.testing.assert_array_equal(np.concatenate([first, second], 1), expected)
    np.testing.assert_array_equal(best, expected.max(1, keepdims=True))
    with pytest.raises(emulator.SignatureError, match="FP32_MIN"):
        run(body.replace("range_start=6,", "on_false_value=0.0,"), x=x, low=low, high=high)


def test_tensor_scalar_reduce_adds_rows_over_calls(run):
    x, start = normal(16, 12), normal(16, 1)
    body = """
        tile = load(x)
        total = sbuf((16, 1))
        both = sbuf((16, 1))
        result = sbuf((16, 12))
        nisa.tensor_scalar_reduce(
            result, tile, nl.subtract, 1.0, nl.add, total, reverse0=True,
            reduce_cmd=nisa.reduce_cmd.load_reduce, reduce_init=load(start),
        )
        nisa.tensor_scalar_reduce(
            tile, tile, nl.multiply, 2.0, nl.add, both, reduce_cmd=nisa.reduce_cmd.reduce
        )
        return output(result), output(total), output(both)
    """
    result, total, both = run(body, x=x, start=start).outputs
    wide = x.astype(np.float64)
    np.testing.assert_allclose(result, 1 - wide, **TOLERANCE)
    first = start + (1 - wide).sum(1, keepdims=True)
    np.testing.assert_allclose(total, first, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(both, first + 2 * wide.sum(1, keepdims=True), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "function"), [("maximum", np.max), ("minimum", np.min), ("multiply", np.prod)]
)
def test_tensor_scalar_reduce_starts_from_the_operators_identity(run, op, function):
    x = -np.abs(normal(16, 12)) - 1
    body = f"""
        best = sbuf((16, 1))
        result = sbuf((16, 12))
        nisa.tensor_scalar_reduce(result, load(x), nl.multiply, 0.5, nl.{op}, best)
        return output(best)
    """
    expected = function(0.5 * x.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(run(body, x=x).outputs[0], expected, rtol=2e-6)


def test_statistics_give_mean_and_variance(run):
    x = normal(16, 300) + 2
    body = """
        tile = load(x)
        parts = sbuf((16, 2, 6))
        nisa.bn_stats(parts[:, 0, :], tile[:, 0:175])
        nisa.bn_stats(parts[:, 1, :], tile[:, 175:300])
        result = sbuf((16, 2))
        nisa.bn_aggr(result, parts)
        return output(result), output(parts)
    """
    result, parts = run(body, x=x).outputs
    wide = x.astype(np.float64)
    np.testing.assert_allclose(result[:, 0], wide.mean(1), rtol=1e-6)
    np.testing.assert_allclose(result[:, 1], wide.var(1), rtol=1e-5)
    even = wide[:, 0:175:2]
    expected = np.stack([np.full(16, 88), even.mean(1), even.var(1) * 88], 1)
    np.testing.assert_allclose(parts[:, 0, :3], expected, rtol=1e-5)


def test_registers_belong_to_partitions(run):
    x = normal(128, 8)
    body = """
        tile = load(x)
        scratch = sbuf((128, 8))
        total = sbuf((128, 1))
        nisa.activation(
            scratch[64:128, :], nl.copy, tile[64:128, :], reduce_op=nl.add,
            reduce_cmd=nisa.reduce_cmd.reset_reduce,
        )
        nisa.activation(
            scratch[START:64, :], nl.copy, tile[START:64, :], reduce_op=nl.add,
            reduce_cmd=nisa.reduce_cmd.reset_reduce,
        )
        nisa.activation(scratch, nl.copy, tile, reduce_res=total)
        return output(total)
    """
    total = run(body.replace("START", "0"), x=x).outputs[0]
    np.testing.assert_allclose(total, x.astype(np.float64).sum(1, keepdims=True), atol=2e-6)
    with pytest.raises(emulator.RuleError, match="nothing has set"):
        run(body.replace("START", "32"), x=x)
