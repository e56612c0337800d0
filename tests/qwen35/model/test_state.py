"""What every caller may rely on about State, checked by properties.

`History` is the heart: it applies any series of prefill and decode calls, ragged and padded in
any way, to a batch, and holds each row's logits to those that transformers gives at that row's
last token when it reads the row alone and in one piece. Row independence, chunking, padding and
inactive rows are all in that one comparison.
"""

import functools

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

import qwen35

TOLERANCE = 1e-4  # as in test_parity: fp32 rounding at logit scale 0.5, against transformers
BATCH, LENGTH = 3, 160
NAMES = ["value_heads_x3_gqa6_odd_hidden", "attention_first_explicit_types", "conv2_interval2_gqa6"]

examples = functools.partial(
    settings, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module", params=NAMES)
def model(request, reference, load):
    """Parameters, three token streams [BATCH, LENGTH] and transformers' logits for them."""
    return _model(request.param, reference, load)


@pytest.fixture(scope="module")
def one_model(reference, load):
    return _model(NAMES[1], reference, load)


def _model(name, reference, load):
    case = reference(name)
    tokens = case.tokens(BATCH, LENGTH, seed=7)
    return load(name), tokens, case.logits(tokens)


def leaves(state):
    return pytree.tree_leaves(state)


def clone(state):
    return pytree.tree_map(torch.clone, state)


def row(state, b):
    """Row b of a state: every leaf has the batch first."""
    return pytree.tree_map(lambda leaf: leaf[b : b + 1], state)


def bits(leaf):
    """The bytes of a tensor: == calls -0 and 0 equal, and no NaN equal to itself."""
    return leaf.contiguous().view(torch.uint8)


def assert_same(actual, expected):
    """Bit for bit."""
    for a, b in zip(leaves(actual), leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.equal(bits(a), bits(b))


def assert_near(actual, expected, bound=1e-5):
    """To rounding: `bound` times the largest entry of the leaf."""
    for a, b in zip(leaves(actual), leaves(expected), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = b.double().abs().max().clamp(min=1.0)
        assert (a.double() - b.double()).abs().max() <= bound * scale


class History:
    """A batch of rows in the course of being read, each from its own stream."""

    def __init__(self, model, capacity=LENGTH, device="cpu"):
        params, self.streams, self.truth = model
        self.device = device
        self.params = qwen35.device_put(params, device)
        self.state = qwen35.init_state(self.params, batch=BATCH, capacity=capacity)
        self.seen = [0] * BATCH
        compiled = qwen35.jit if device == "xla" else lambda function: function
        self.functions = compiled(qwen35.prefill), compiled(qwen35.decode)

    def prefill(self, lengths, poison=0, width=None):
        """Feed the next lengths[b] tokens of each row, padded on the right with `poison`."""
        width = width or max(1, *lengths)
        tokens = torch.full((BATCH, width), poison, dtype=torch.int64)
        for b, n in enumerate(lengths):
            tokens[b, :n] = self.streams[b, self.seen[b] : self.seen[b] + n]
        self._call(self.functions[0], tokens, torch.tensor(lengths), lengths)

    def decode(self, active, poison=0):
        """Feed one token to the active rows and `poison` to the others."""
        token = torch.full((BATCH,), poison, dtype=torch.int64)
        for b in range(BATCH):
            if active[b]:
                token[b] = self.streams[b, self.seen[b]]
        self._call(self.functions[1], token, torch.tensor(active), [int(a) for a in active])

    def _call(self, function, tokens, mask, lengths):
        tokens, mask = qwen35.device_put((tokens, mask), self.device)
        result = function(self.params, self.state, tokens, mask)
        before = qwen35.device_put(self.state, "cpu")
        logits, after = qwen35.device_put(result, "cpu")
        for b, n in enumerate(lengths):
            self.seen[b] += n
            if n:
                expected = self.truth[b, self.seen[b] - 1]
                torch.testing.assert_close(logits[b], expected, rtol=0, atol=TOLERANCE)
            else:
                assert torch.count_nonzero(logits[b]) == 0
                assert_same(row(after, b), row(before, b))
        assert after.position.tolist() == self.seen
        self.state = result[1]


ids = st.sampled_from([0, 1, 96, 97, 131, -1, -100, 2**31 - 1, -(2**31)])
sizes = st.one_of(st.sampled_from([1, 2, 3, 63, 64, 65]), st.integers(1, 20))
ragged = st.lists(
    st.one_of(st.just(0), st.integers(0, 6), st.integers(60, 70)), min_size=3, max_size=3
)
calls = st.lists(
    st.one_of(
        st.tuples(st.just("prefill"), ragged, ids),
        st.tuples(st.just("decode"), st.lists(st.booleans(), min_size=3, max_size=3), ids),
    ),
    min_size=1,
    max_size=12,
)


@examples(max_examples=40)
@given(calls)
@example([("prefill", [0, 0, 0], -1), ("decode", [False] * 3, 131), ("prefill", [1, 2, 3], -1)])
@example([("prefill", [1, 0, 2], 97)] * 4 + [("decode", [True, False, True], -1)] * 3)
def test_any_calls_give_what_each_row_gives_alone(model, calls):
    history = History(model)
    for kind, what, poison in calls:
        if kind == "prefill":
            room = [min(n, LENGTH - seen) for n, seen in zip(what, history.seen, strict=True)]
            history.prefill(room, poison)
        else:
            room = [a and seen < LENGTH for a, seen in zip(what, history.seen, strict=True)]
            history.decode(room, poison)


@examples(max_examples=25)
@given(st.lists(st.tuples(sizes, st.booleans()), min_size=1, max_size=8))
@example([(1, False)] * 9)
@example([(2, False), (2, False), (3, False), (1, True), (1, False), (64, False)])
def test_any_split_gives_the_state_of_one_prefill(model, pieces):
    """Every leaf of the state, not only the logits that follow from it."""
    params, streams, truth = model
    state = qwen35.init_state(params, batch=BATCH, capacity=LENGTH)
    done = 0
    for size, stepwise in pieces:
        # What a step does it does at any place: some are enough.
        piece = streams[:, done : done + (min(size, 9) if stepwise else size)]
        if piece.shape[1] == 0:
            break
        done += piece.shape[1]
        if stepwise:
            for t in range(piece.shape[1]):
                logits, state = qwen35.decode(params, state, piece[:, t])
        else:
            logits, state = qwen35.prefill(params, state, piece)
    torch.testing.assert_close(logits, truth[:, done - 1], rtol=0, atol=TOLERANCE)
    fresh = qwen35.init_state(params, batch=BATCH, capacity=LENGTH)
    _, whole = qwen35.prefill(params, fresh, streams[:, :done])
    assert_near(state, whole)


@pytest.mark.parametrize(
    ("name", "segments"),
    [(NAMES[1], 1), (NAMES[2], 2), pytest.param(NAMES[2], "auto", marks=pytest.mark.slow)],
)
def test_compiled_calls_keep_the_same_promises(name, segments, reference, load):
    """The ragged series once more through compiled graphs, out-of-range padding included."""
    params, *streams = _model(name, reference, load)
    history = History((params.with_runtime(segments=segments), *streams), device="xla")
    for lengths in ([5, 0, 2], [1, 5, 0], [3, 1, 5]):
        history.prefill(lengths, poison=10**6, width=5)
    for active in ([True, False, True], [False, True, True], [False] * 3, [True] * 3):
        history.decode(active, poison=-5)
    history.prefill([2, 4, 0], poison=-(2**31), width=5)
    assert [function.compile_count for function in history.functions] == [1, 1]


@pytest.mark.parametrize("value", [-0.0, float("inf"), float("nan"), 1e-45, -3e38])
def test_rows_without_a_token_keep_every_bit(model, value):
    """Also values that adding or multiplying nothing would alter: -0 + 0 is 0, Inf * 0 is NaN."""
    params, streams, _ = model

    def fill(leaf):
        return torch.full_like(leaf, value) if leaf.is_floating_point() else leaf

    state = pytree.tree_map(fill, qwen35.init_state(params, batch=BATCH, capacity=8))
    nobody = torch.tensor([0, 0, 0])
    for logits, after in (
        qwen35.prefill(params, state, streams[:, :5], nobody),
        qwen35.decode(params, state, streams[:, 0], nobody.bool()),
    ):
        assert_same(after, state)
        assert torch.equal(bits(logits), bits(torch.zeros_like(logits)))


@pytest.mark.parametrize("poison", [-1, 131, 10**6, 2**31 - 1, -(2**31)])
def test_padding_ids_change_nothing_at_all(model, poison):
    """Bit for bit: padding with any id is padding with id 0."""
    params, streams, _ = model
    state = qwen35.init_state(params, batch=BATCH, capacity=LENGTH)
    lengths = torch.tensor([70, 1, 0])
    inside = torch.arange(75) < lengths[:, None]
    results = [
        qwen35.forward(params, state, torch.where(inside, streams[:, :75], fill), lengths)
        for fill in (0, poison)
    ]
    (hidden, after), (hidden_poisoned, after_poisoned) = results
    assert_same(after, after_poisoned)
    assert torch.equal(hidden[inside], hidden_poisoned[inside])


@pytest.mark.parametrize("huge", [1e30, float("inf"), float("nan")])
def test_padding_values_change_nothing_at_all(text_config, tmp_path, huge):
    """Padding whose own activations are huge, Inf or NaN leaves nothing in any row or state."""
    config = qwen35.Config.from_dict(text_config("attention_first_explicit_types"))
    params = qwen35.init_params(config, seed=1)
    poisoned = _with_embedding_row(params, config, index=130, value=huge)
    tokens = torch.randint(130, (2, 70), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([70, 3])
    inside = torch.arange(70) < lengths[:, None]
    results = []
    for fill in (0, 130):
        state = qwen35.init_state(poisoned, batch=2, capacity=80)
        padded = torch.where(inside, tokens, fill)
        logits, state = qwen35.prefill(poisoned, state, padded, lengths)
        token, active = torch.tensor([5, fill]), torch.tensor([True, False])
        stepped, state = qwen35.decode(poisoned, state, token, active)
        results.append(([logits[:, :130], stepped[:, :130]], state))
    assert_same(results[0], results[1])
    assert all(torch.isfinite(leaf).all() for leaf in leaves(results[1]))


def _with_embedding_row(params, config, index, value):
    """The same parameters with one row of the (untied) embedding set to a value."""
    shape = (config.vocab_size, config.hidden_size)
    flat, spec = pytree.tree_flatten(params)
    at = [i for i, leaf in enumerate(flat) if tuple(leaf.shape) == shape]
    assert len(at) == 1, "the embedding is the only [vocabulary, hidden] leaf of an untied model"
    flat[at[0]] = flat[at[0]].index_fill(0, torch.tensor([index]), value)
    return pytree.tree_unflatten(flat, spec)


def test_rope_offset_moves_the_positions_that_follow(reference, load):
    """As after an image: from token 20 on, positions run ahead of the tokens seen, row by row."""
    name, offset = NAMES[1], torch.tensor([7, 0, -5], dtype=torch.int32)
    case, params = reference(name), load(name)
    tokens = case.tokens(BATCH, 40, seed=9)
    seen = torch.arange(40).expand(BATCH, -1)
    moved = seen + torch.where(torch.arange(40) < 20, 0, offset[:, None])
    # Row 0 of transformers' four is the order for its mask, the others are t, h and w.
    positions = torch.stack([seen, moved, moved, moved])
    with torch.no_grad():
        expected = case.model(tokens, position_ids=positions, use_cache=False).logits
    state = qwen35.init_state(params, batch=BATCH, capacity=40)
    _, state = qwen35.prefill(params, state, tokens[:, :20])
    state = state._replace(rope_offset=offset)
    logits, state = qwen35.prefill(params, state, tokens[:, 20:39])
    torch.testing.assert_close(logits, expected[:, 38], rtol=0, atol=TOLERANCE)
    logits, state = qwen35.decode(params, state, tokens[:, 39])
    torch.testing.assert_close(logits, expected[:, 39], rtol=0, atol=TOLERANCE)
    assert torch.equal(state.rope_offset, offset)
    assert (case.logits(tokens)[:, 39] - expected[:, 39]).abs()[[0, 2]].max() > 100 * TOLERANCE


def test_an_old_state_can_be_used_again(model):
    """Decoding and prefilling from one state several times: same results, state untouched."""
    params, streams, _ = model
    state = qwen35.init_state(params, batch=BATCH, capacity=LENGTH)
    _, state = qwen35.prefill(params, state, streams[:, :66])
    kept = clone(state)
    first = qwen35.decode(params, state, streams[:, 66])
    qwen35.decode(params, state, streams[:, 0])
    qwen35.prefill(params, state, streams[:, 90:130])
    again = qwen35.decode(params, state, streams[:, 66])
    assert_same(first, again)
    assert_same(state, kept)


def test_going_back_after_rejected_tokens(model):
    """Read four more tokens, drop them by returning to the old state: as if never read."""
    params, streams, truth = model
    state = qwen35.init_state(params, batch=BATCH, capacity=LENGTH)
    _, state = qwen35.prefill(params, state, streams[:, :10])
    for rejected in range(1, 5):
        qwen35.prefill(params, state, streams[:, 50 : 50 + rejected])
        logits, _ = qwen35.decode(params, state, streams[:, 10])
        torch.testing.assert_close(logits, truth[:, 10], rtol=0, atol=TOLERANCE)


def test_a_reused_slot_tells_nothing_of_its_past(model):
    """Row 0 held another sequence, with huge values; once re-initialised it is as new."""
    params, streams, _ = model
    fresh = qwen35.init_state(params, batch=BATCH, capacity=LENGTH)
    _, used = qwen35.prefill(params, fresh, streams.flip(1)[:, :100])
    used = pytree.tree_map(lambda x: x * 1e6 if x.is_floating_point() else x, used)

    def reset_first_row(old, new):
        first = (torch.arange(BATCH) == 0).view(-1, *[1] * (old.dim() - 1))
        return torch.where(first, new, old)

    mixed = pytree.tree_map(reset_first_row, used, fresh)
    lengths = torch.tensor([40, 0, 3])
    logits, after = qwen35.prefill(params, mixed, streams[:, :40], lengths)
    expected_logits, expected = qwen35.prefill(params, fresh, streams[:, :40], lengths)
    assert torch.equal(logits[0], expected_logits[0])
    assert_same(row(after, 0), row(expected, 0))


def test_what_lies_behind_the_position_is_never_read(model):
    """Stale keys and values behind the position (as a rolled-back slot has) have no effect."""
    params, streams, truth = model
    state = qwen35.init_state(params, batch=BATCH, capacity=LENGTH)
    _, state = qwen35.prefill(params, state, streams[:, :20])
    stale = []
    for layer in state.layers:
        if isinstance(layer, qwen35.AttentionState):
            key, value = layer.key.clone(), layer.value.clone()
            key[..., 20:], value[..., 20:, :] = 1e30, -1e30
            layer = layer._replace(key=key, value=value)
        stale.append(layer)
    state = state._replace(layers=tuple(stale))
    logits, after = qwen35.decode(params, state, streams[:, 20])
    torch.testing.assert_close(logits, truth[:, 20], rtol=0, atol=TOLERANCE)
    logits, _ = qwen35.prefill(params, after, streams[:, 21:30])
    torch.testing.assert_close(logits, truth[:, 29], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 8, 16, 32, 100, 128, 256])
def test_the_chunk_is_invisible(model, chunk):
    params, streams, truth = model
    params = params.with_runtime(chunk=chunk)
    state = qwen35.init_state(params, batch=BATCH, capacity=LENGTH)
    hidden, _ = qwen35.forward(params, state, streams)
    logits = qwen35.logits(params, hidden)
    torch.testing.assert_close(logits, truth, rtol=0, atol=TOLERANCE)


def test_capacity_is_exact_and_padding_needs_none(one_model):
    """position + lengths may reach the capacity though the padded width goes beyond it."""
    history = History(one_model, capacity=70)
    history.prefill([66, 64, 3])
    history.prefill([3, 6, 0], poison=-1, width=30)
    history.decode([True, False, True], poison=-1)
    assert history.seen == [70, 70, 4]
    history.decode([False, False, True])
    history.prefill([0, 0, 65], width=80)


def test_shapes_and_types(one_model):
    """The documented structure; the state's size is what its leaves say."""
    params, _, _ = one_model
    config = params.config
    state = qwen35.init_state(params, batch=2, capacity=11)
    assert state.position.dtype == state.rope_offset.dtype == torch.int32
    assert state.position.tolist() == state.rope_offset.tolist() == [0, 0]
    assert len(state.layers) == config.num_hidden_layers
    for kind, layer in zip(config.layer_types, state.layers, strict=True):
        if kind == "linear_attention":
            heads, kernel = config.linear_num_value_heads, config.linear_conv_kernel_dim
            assert layer.conv.shape == (2, kernel - 1, config.conv_channels)
            dims = config.linear_key_head_dim, config.linear_value_head_dim
            assert layer.recurrent.shape == (2, heads, *dims)
            assert layer.recurrent.dtype == torch.float32
        else:
            heads, dim = config.num_key_value_heads, config.head_dim
            assert layer.key.shape == (2, heads, dim, 11)
            assert layer.value.shape == (2, heads, 11, dim)
    assert not any(leaf.any() for leaf in leaves(state))


def test_bfloat16_state_keeps_the_recurrence_in_float32(reference):
    params = qwen35.load(reference(NAMES[1]).directory, dtype="bfloat16")
    state = qwen35.init_state(params, batch=1, capacity=8)
    _, after = qwen35.prefill(params, state, torch.tensor([[1, 2, 3]]))
    _, after = qwen35.decode(params, after, torch.tensor([4]))
    for tree in (state, after):
        for layer in tree.layers:
            if isinstance(layer, qwen35.DeltaNetState):
                assert layer.recurrent.dtype == torch.float32
                assert layer.conv.dtype == torch.bfloat16
            else:
                assert layer.key.dtype == layer.value.dtype == torch.bfloat16
