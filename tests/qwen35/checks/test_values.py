"""What acts as an integer is one, wherever a count is asked for; errors have name and value."""

import numpy as np
import pytest
import torch

from qwen35.checks.values import as_integer, integer, is_number, positive_number, shown, token_ids

INTEGERS = [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor([3])]
OTHERS = [True, np.True_, torch.tensor(True), 3.0, np.float32(3), "3", None, [3], torch.tensor(3.0)]


@pytest.mark.parametrize("value", INTEGERS, ids=repr)
def test_what_acts_as_an_integer_is_one(value):
    for found in (as_integer(value), integer("n", value), *token_ids("row", [value], 4)):
        assert found == 3 and type(found) is int


@pytest.mark.parametrize("value", OTHERS, ids=repr)
def test_what_does_not_is_refused_with_name_and_value(value):
    assert as_integer(value) is None
    with pytest.raises(ValueError, match="count must be a positive integer, not ") as error:
        integer("count", value)
    assert str(error.value).endswith(shown(value))
    with pytest.raises(ValueError, match=r"row 2 has .* where a token id is needed"):
        token_ids("row 2", [1, value], 4)


@pytest.mark.parametrize(
    ("value", "bounds", "wanted"),
    [
        (0, (1,), "a positive integer"),
        (-1, (0,), "an integer of at least 0"),
        (0, (1, 9), "an integer from 1 to 9"),
        (10, (1, 9), "an integer from 1 to 9"),
    ],
)
def test_bounds_are_in_the_error(value, bounds, wanted):
    with pytest.raises(ValueError, match=f"^n must be {wanted}, not {value}$"):
        integer("n", value, *bounds)
    assert [integer("n", bound, *bounds) for bound in bounds] == list(bounds)


@pytest.mark.parametrize(
    ("token", "seen"),
    [(-1, "-1"), (1280, "1280"), (10**5000, "an integer of 16,610 bits")],
    ids=["below", "above", "huge"],
)
def test_a_token_outside_the_vocabulary(token, seen):
    with pytest.raises(ValueError, match=f"{seen}.*the vocabulary of 1280 .0 to 1279.$"):
        token_ids("the prompt", [0, 1279, token], 1280)


def test_numbers():
    for value in (0, -1.5, 10**300, np.float32(2), np.int64(2)):
        assert is_number(value)
    for value in (float("nan"), float("inf"), 10**400, True, "1", None, 1j, [1]):
        assert not is_number(value)
    assert positive_number("x", 0.5) == 0.5
    for value in (0, -1, float("nan"), True, "1"):
        with pytest.raises(ValueError, match=r"^x must be a positive number, not "):
            positive_number("x", value)


def test_long_values_are_cut():
    assert shown("x" * 5000) == "'" + "x" * 78 + "…"
    assert len(shown(list(range(10**5)))) == 80
