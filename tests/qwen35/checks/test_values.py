"""What acts as an integer is one, wherever a count is asked for; errors have name and value."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

import qwen35
from qwen35.checks.values import (
    all_finite,
    as_integer,
    check_fits,
    integer,
    is_number,
    positive_number,
    shown,
    token_ids,
)
from qwen35.evaluation.scoring import score
from qwen35.sharding.mesh import Mesh

INTEGERS = [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)]
OTHERS = [True, np.True_, torch.tensor(True), 3.0, np.float32(3), "3", None, [3], torch.tensor(3.0)]
OTHERS += [torch.tensor([3]), np.array([3])]


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


def test_what_no_memory_holds_is_refused_by_number(load):
    """Before the first tensor is made: those before it may fit, and fill the machine."""
    check_fits("a byte", 1)
    config = qwen35.presets["27b"].text_only()
    with pytest.raises(ValueError, match=r"the parameters: [\d,]{9,} MB, more than the [\d,]+ MB"):
        qwen35.init_params(dataclasses.replace(config, vocab_size=2**31 - 1))
    with pytest.raises(ValueError, match=r"the state: [\d,]{9,} MB, more than the [\d,]+ MB"):
        qwen35.init_state(load("equal_heads"), 1, 2**50)


def test_long_values_are_cut():
    assert shown("x" * 5000) == "'" + "x" * 78 + "…"
    assert len(shown(list(range(10**5)))) == 80


def test_every_count_takes_numpys_integers(load, letters):
    """The places where a caller gives a count or a token, with NumPy's integers for each: the
    result is that of Python's."""
    params, two = load("equal_heads"), np.int64(2)
    state = qwen35.init_state(params, batch=two, capacity=np.uint16(8))
    assert (state.batch, state.capacity) == (2, 8)
    assert Mesh(dp=two, tp=two) == Mesh(2, 2) and Mesh(tp=4).coordinates(two) == (0, 2)
    assert qwen35.Runtime(chunk=two, rank=np.int8(0)) == qwen35.Runtime(chunk=2)
    sampling = qwen35.Sampling(
        top_k=two, seed=two, logprobs=two, banned=np.array([1]), stop=[two], logit_bias={two: 1.0}
    )
    assert sampling == qwen35.Sampling(
        top_k=2, seed=2, logprobs=2, banned=[1], stop=[2], logit_bias={2: 1.0}
    )
    expected = qwen35.generate(params, letters, [[5, 6]], max_new_tokens=2)[0].tokens
    tokens = np.array([5, 6])
    for prompts in (tokens, [tokens], torch.tensor([5, 6]), [torch.tensor([5]), tokens]):
        options = {"max_new_tokens": two, "prefill_chunk": np.int64(64), "capacity": np.int64(32)}
        assert qwen35.generate(params, letters, prompts, **options)[-1].tokens == expected
    engine = qwen35.Engine(params, letters, slots=two, capacity=np.int64(32))
    request = engine.submit(tokens, max_new_tokens=two)
    assert tuple(piece.token for piece in engine.stream(request)) == tuple(expected)


def test_every_count_refuses_what_is_none(load, letters):
    params = load("equal_heads")
    generate = functools.partial(qwen35.generate, params, letters, [[5]])
    for value in (0, True, 2.0, "2", None):
        for name, call in (
            ("batch", lambda value: qwen35.init_state(params, value, 8)),
            ("capacity", lambda value: qwen35.init_state(params, 1, value)),
            ("dp", lambda value: Mesh(dp=value)),
            ("chunk", lambda value: qwen35.Runtime(chunk=value)),
            ("max_new_tokens", lambda value: generate(max_new_tokens=value)),
            ("prefill_chunk", lambda value: generate(prefill_chunk=value)),
            ("slots", lambda value: qwen35.Engine(params, letters, slots=value)),
        ):
            with pytest.raises(ValueError, match=f"^{name} must be .* integer.*, not {value!r}$"):
                call(value)


@pytest.mark.parametrize("token", [128, -1, 1.0, True, "a", None])
def test_every_token_that_the_model_lacks_is_refused_by_value(load, letters, token):
    """Wherever tokens come in, and not with a result for another token: int(1.5) is 1."""
    params = load("equal_heads")
    vocabulary = params.config.vocab_size
    token = vocabulary if token == 128 else token
    engine = qwen35.Engine(params, letters, slots=1, capacity=32)
    for call in (
        lambda: qwen35.generate(params, letters, [[5], [5, token]], max_new_tokens=1),
        lambda: engine.submit([5, token], max_new_tokens=1),
        lambda: score(params, [[5, token]]),
    ):
        with pytest.raises(ValueError, match=r"(prompt|row)( \d)? has .*token id") as error:
            call()
        assert shown(token) in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_value_that_is_not_finite_is_found_wherever_it_is(dtype):
    """Every place of a tensor of several parts, and largest finite values whose sum overflows."""
    tensor = torch.zeros(5, 2**14, dtype=dtype)
    assert all_finite(tensor)
    for value in (float("nan"), float("inf"), -float("inf")):
        for place in ((0, 0), (2, 7), (4, -1)):
            tensor[place] = value
            assert not all_finite(tensor)
            tensor[place] = 0
    tensor[0, :2] = torch.tensor([float("inf"), -float("inf")])
    assert not all_finite(tensor)
    tensor[:] = torch.finfo(dtype).max
    assert all_finite(tensor) and all_finite(-tensor) and all_finite(tensor[:, :0])


@pytest.mark.parametrize(
    "kind", [np.float64, np.array, torch.tensor, lambda value: torch.tensor(value).double()]
)
def test_what_acts_as_a_number_is_one_in_every_setting(kind):
    """Halves, which are the same in every width; the setting is Python's own number."""
    names = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty")
    names += ("repetition_penalty",)
    ours = qwen35.Sampling(**dict.fromkeys(names, 0.5), logit_bias={3: 1.5})
    theirs = qwen35.Sampling(
        **{name: kind(0.5) for name in names}, logit_bias={np.int64(3): kind(1.5)}
    )
    assert theirs == ours and hash(theirs) == hash(ours)
    assert {type(getattr(theirs, name)) for name in names} == {float}
    assert positive_number("fps", kind(0.5)) == 0.5


@pytest.mark.parametrize(
    "value", [np.True_, torch.tensor(True), np.nan, torch.tensor(torch.inf), np.ones(1), 1j, "1"]
)
def test_what_is_no_number_is_refused(value):
    assert not is_number(value)
    with pytest.raises(ValueError, match="temperature must be a number >= 0"):
        qwen35.Sampling(temperature=value)
