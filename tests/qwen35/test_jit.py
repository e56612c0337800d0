"""jit as a library function: results against plain Python and eager torch on the CPU."""

import torch

from qwen35.devices import device_put
from qwen35.jit import jit


def on_xla(tree):
    return device_put(tree, "xla")


def assert_same(actual, expected):
    """Equal trees: same structure, tensors of equal dtype and value, equal other leaves."""
    actual = device_put(actual, "cpu")
    a, a_spec = torch.utils._pytree.tree_flatten(actual)
    e, e_spec = torch.utils._pytree.tree_flatten(expected)
    assert a_spec == e_spec
    for x, y in zip(a, e, strict=True):
        if isinstance(y, torch.Tensor):
            torch.testing.assert_close(x, y, rtol=0, atol=0)
        else:
            assert type(x) is type(y) and x == y


def test_compiles_once_per_shape_and_static_value():
    calls = []

    def f(x, scale):
        calls.append(tuple(x.shape))
        return x * scale

    fn = jit(f)
    x = torch.arange(6.0).reshape(2, 3)
    for _ in range(3):
        assert_same(fn(on_xla(x), 2), x * 2)
        assert_same(fn(on_xla(x), 3), x * 3)
        assert_same(fn(on_xla(x[:1]), 2), x[:1] * 2)
    assert calls == [(2, 3), (2, 3), (1, 3)]
    assert fn.compile_count == 3
    assert len(fn.signatures) == 3 and "float32[2, 3]" in fn.signatures[0]
