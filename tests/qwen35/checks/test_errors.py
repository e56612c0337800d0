"""What an error came of."""

import pytest

from qwen35.checks.errors import causes


def raised(cause: Exception | None) -> Exception:
    """An error of this cause, raised while a KeyError was handled."""
    with pytest.raises(ValueError) as caught:
        try:
            raise KeyError
        except KeyError:
            raise ValueError from cause
    return caught.value


def test_causes_before_contexts():
    assert [type(one) for one in causes(raised(OSError()))] == [ValueError, OSError]
    assert [type(one) for one in causes(raised(OSError()), contexts=True)] == [ValueError, OSError]
    assert [type(one) for one in causes(raised(None), contexts=True)] == [ValueError, KeyError]
    assert [type(one) for one in causes(raised(None))] == [ValueError]


def test_an_error_may_be_its_own_cause():
    one, other = ValueError(), OSError()
    one.__cause__ = one
    assert list(causes(one)) == [one]
    one.__cause__, other.__cause__ = other, one
    assert list(causes(one, contexts=True)) == [one, other]
