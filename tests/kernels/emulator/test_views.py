"""Indexing and view methods, checked against NumPy on arrays of element numbers."""

import numpy as np
import pytest

from qwen35.kernels import emulator

# (expression on a tile t [16, 4, 6], NumPy's equivalent)
VIEWS = {
    "t[:, 1, :]": lambda a: a[:, 1, :],
    "t[:, -1, :]": lambda a: a[:, -1, :],
    "t[3, :, :]": lambda a: a[3:4],
    "t[:, 0, 5]": lambda a: a[:, 0, 5:6],
    "t[2:9, 1:4, ::2]": lambda a: a[2:9, 1:4, ::2],
    "t[..., -2:]": lambda a: a[..., -2:],
    "t[:, nl.ds(1, 2), :]": lambda a: a[:, 1:3, :],
    "t.reshape((16, 24))": lambda a: a.reshape(16, 24),
    "t.reshape((16, 2, 2, 2, 3))": lambda a: a.reshape(16, 2, 2, 2, 3),
    "t.reshape((16, 1, 4, 6))": lambda a: a.reshape(16, 1, 4, 6),
    "t.reshape((16, 1, 1, 24))": lambda a: a.reshape(16, 1, 1, 24),
    "t.reshape((16, 24, 1, 1))": lambda a: a.reshape(16, 24, 1, 1),
    "t.ap([[24, 16], [1, 6], [6, 4]])": lambda a: a.transpose(0, 2, 1),
    "t.ap([[24, 8], [5, 3]], offset=7)": lambda a: a.reshape(16, 24)[:8, 7:22:5],
    "t.ap([[24, 16], [0, 5], [1, 6]])": lambda a: np.repeat(a[:, :1], 5, 1),
}
VIEWS_OF_0_5 = {
    "t[:, 1:3, :][:, :, 2:4]": lambda a: a[:, 1:3, 2:4],
    "t.slice(1, 1, 4, 2)": lambda a: a[:, 1:4:2],
    "t.select(2, 3)": lambda a: a[:, :, 3],
    "t.permute((0, 2, 1))": lambda a: a.transpose(0, 2, 1),
    "t.permute((0, 2, 1))[:, 4, :]": lambda a: a[:, :, 4],
    "t[:, 0:1, :].broadcast(1, 3)": lambda a: np.repeat(a[:, :1], 3, 1),
    "t.expand_dim(1)": lambda a: a[:, None],
    "t.expand_dim(2).squeeze_dim(2)": lambda a: a,
    "t.reshape_dim(2, (2, 3))": lambda a: a.reshape(16, 4, 2, 3),
    "t.flatten_dims(1, 2)": lambda a: a.reshape(16, 24),
    "t[:, :, 0:2].reshape_dim(1, (2, 2))": lambda a: a[:, :, :2].reshape(16, 2, 2, 2),
    't.rearrange(("p", "a", ("b", "c")), ("p", "c", ("a", "b")), {"b": 2})': (
        lambda a: a.reshape(16, 4, 2, 3).transpose(0, 3, 1, 2).reshape(16, 3, 8)
    ),
}
BODY = """
    t = load(x)
    return output(EXPRESSION)
"""


def numbers():
    return np.arange(16 * 4 * 6, dtype=np.float32).reshape(16, 4, 6)


@pytest.mark.parametrize("version", ["0.3", "0.4", "0.5", "0.6", "0.7"])
@pytest.mark.parametrize("expression", VIEWS)
def test_views_of_every_version(run, expression, version):
    body = BODY.replace("EXPRESSION", expression)
    got = run(body, x=numbers(), version=version).outputs[0]
    np.testing.assert_array_equal(got, VIEWS[expression](numbers()))


@pytest.mark.parametrize("expression", VIEWS_OF_0_5)
def test_view_methods_came_with_0_5(run, expression):
    body = BODY.replace("EXPRESSION", expression)
    got = run(body, x=numbers(), version="0.5").outputs[0]
    np.testing.assert_array_equal(got, VIEWS_OF_0_5[expression](numbers()))
    with pytest.raises((emulator.SignatureError, emulator.RuleError), match=r"0\.5|once"):
        run(body, x=numbers(), version="0.4")


def test_writes_through_a_view_land_in_the_tensor(run):
    body = """
        t = load(x)
        nisa.memset(t.ap([[24, 16], [1, 6], [6, 4]])[:, 2:4, 1:3], -1.0)
        nisa.memset(t[0:8, 3, :], -2.0)
        return output(t)
    """
    expected = numbers()
    expected[:, 1:3, 2:4] = -1
    expected[:8, 3] = -2
    np.testing.assert_array_equal(run(body, x=numbers()).outputs[0], expected)


def test_attributes_are_those_of_the_documentation(run):
    body = """
        t = sbuf((128, 64))
        assert t.shape == (128, 64)
        assert t.strides == (64, 1)
        assert t.offset == 0
        assert t.dtype == nl.float32
        assert t.dtype != nl.bfloat16
        assert t.buffer == nl.sbuf
        assert t.buffer != nl.psum
        assert x.buffer != nl.sbuf
        assert t.ndim == 2
        assert t.size == 8192
        assert t[:, 8:16].offset == 8
        assert t.is_contiguous()
        assert not t[:, 0:8].is_contiguous()
        assert t[:, 0:8].get_pattern() == [[64, 128], [1, 8]]
        assert t[0, 10].shape == (1, 1)
        assert x[0].shape == (4, 6)
        return output(load(x))
    """
    run(body, x=numbers())


def test_views_keep_poison_apart(run):
    body = """
        t = sbuf((16, 24))
        nisa.memset(t[:, 0:23], 0.0)
        nisa.memset(t[0:15, 23:24] if rows == 15 else t[:, 23:24], 0.0)
        result = sbuf((16, 24))
        nisa.tensor_copy(result, t)
        return output(result)
    """
    run(body, rows=16)
    with pytest.raises(emulator.UninitializedError, match=r"element \[15, 23\].* 1 of 384") as e:
        run(body, rows=15)
    assert "allocated at line" in str(e.value)
    assert "nisa.tensor_copy(result, t)" in str(e.value)
