"""Steps cut into graphs of some layers: what transformers says, and one graph to rounding."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

import qwen35
from qwen35.generation import steps as generation
from qwen35.model.params import AttentionLayer, DeltaNetLayer, Runtime
from qwen35.model.segments import runs, sizes_of
from qwen35.xla.observers import on_compile

# Periods of 2 layers, of 1 and 1, of 2 with a layer before and one after, of 3 with an odd tail.
NAMES = ["conv2_interval2_gqa6", "only_deltanet", "only_attention", "ddadadad", "ddaddad"]
SIZES = {
    "conv2_interval2_gqa6": [2, 2],
    "only_deltanet": [1] * 3,
    "only_attention": [1] * 2,
    "ddadadad": [1, 2, 2, 2, 1],
    "ddaddad": [3, 3, 1],
}
slow = pytest.mark.slow
TOLERANCE = 1e-4  # as in test_parity: fp32 rounding at logit scale 0.5


@pytest.fixture
def model(reference, load, model_of_kinds):
    """model(name, segments): transformers' model of a case, or of kinds of layers, and ours."""

    def build(name, **runtime):
        if set(name) <= set("da"):
            case = model_of_kinds(name)
            params = qwen35.load(case.directory, device="xla")
        else:
            case, params = reference(name), load(name, "xla")
        return case, params.with_runtime(**runtime)

    return build


def steps():
    return qwen35.jit(qwen35.prefill, donate="state"), qwen35.jit(qwen35.decode, donate="state")


def read_and_decode(case, params):
    """Ragged prompts and rows that pause, against transformers; the steps, and what all of them
    gave: logits, and the state at the end."""
    tokens = case.tokens(3, 40, seed=5)
    truth = case.logits(tokens)
    prefill, decode = steps()
    state = qwen35.init_state(params, 3, 48)
    seen, said = [0, 0, 0], []
    for piece in ([9, 3, 0], [4, 9, 1]):
        chunk = torch.full((3, 9), -100)
        for row, length in enumerate(piece):
            chunk[row, :length] = tokens[row, seen[row] : seen[row] + length]
            seen[row] += length
        logits, state = prefill(params, state, *put(chunk, torch.tensor(piece)))
        check(logits, truth, seen, [row for row in range(3) if piece[row]])
        said.append(logits)
    for number in range(12):
        active = [number % 2 == 0, True, number % 3 > 0]
        token = torch.tensor([tokens[row, seen[row]] for row in range(3)])
        logits, state = decode(params, state, *put(token, torch.tensor(active)))
        seen = [count + many for count, many in zip(seen, active, strict=True)]
        check(logits, truth, seen, [row for row in range(3) if active[row]])
        said.append(logits)
    assert [step.compile_count for step in (prefill, decode)] == [1, 1]
    return (prefill, decode), qwen35.device_put((said, state), "cpu")


def assert_equal(ours, theirs):
    """To 1e-6 of the largest value: the sums are the same, XLA may form them in other places."""
    ours, theirs = pytree.tree_leaves(ours), pytree.tree_leaves(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * max(1, b.abs().max()))


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("conv2_interval2_gqa6", "ddaddad") else pytest.param(name, marks=slow)
        for name in NAMES
    ],
)
def test_ragged_prompts_and_rows_that_pause(name, model):
    """Against transformers, and against the one graph that holds all: state and logits."""
    results = []
    for segments in (1, "auto"):
        compiled, result = read_and_decode(*model(name, segments=segments))
        assert not any("one graph" in step.signatures[0] for step in compiled)
        results.append(result)
    assert_equal(*results)


@slow
def test_sixteen_blocks_as_one_graph_and_as_2_4_and_16(model):
    """Identical tokens, logits and states as of one graph; and for each run less to compile."""
    name, results, counts = "da" * 16, {}, {}
    for segments in (1, 2, 4, 16):
        case, params = model(name, segments=segments, chunk=48)  # no other test's graphs
        names = []
        with on_compile(lambda event, n=names: event.phase == "done" and n.append(event.name)):
            compiled, results[segments] = read_and_decode(case, params)
        assert not any("one graph" in step.signatures[0] for step in compiled)
        counts[segments] = len(names)
    # Of a prompt the last run is another one, which goes on with each row's last token only.
    assert counts == {1: 2, 2: 5, 4: 5, 16: 5}
    (logits, _), expected = results[1], case.logits(case.tokens(3, 40, seed=5))
    assert torch.stack(logits).abs().max() > 0.1 and expected.isfinite().all()
    for segments in (2, 4, 16):
        assert_equal(results[segments], results[1])
        tokens = [[step.argmax(-1) for step in results[n][0]] for n in (1, segments)]
        assert torch.equal(*map(torch.stack, tokens))


def put(*tensors):
    return qwen35.device_put(tensors, "xla")


def check(logits, truth, seen, rows):
    for row in rows:
        expected = truth[row, seen[row] - 1]
        torch.testing.assert_close(logits[row].cpu(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "segments"),
    [("conv2_interval2_gqa6", 2), pytest.param("ddaddad", "auto", marks=slow)],
)
def test_greedy_tokens_of_generate_and_engine(name, segments, model, letters):
    case, params = model(name, segments=segments)
    prompt, chosen, _ = case.greedy(24, 64)
    prompts, expected = [row.tolist() for row in prompt], chosen[:, :20].tolist()
    sampling = qwen35.Sampling(ignore_eos=True)
    written = qwen35.generate(params, letters, prompts, max_new_tokens=20, sampling=sampling)
    assert [list(one.tokens) for one in written] == expected
    small = {"slots": 2, "capacity": 64, "prefill_chunk": 8, "prefill_sizes": 1}
    engine = qwen35.Engine(params, letters, **small)
    engine.warm_up()
    requests = [engine.submit(tokens, max_new_tokens=20, sampling=sampling) for tokens in prompts]
    with on_compile() as compiled:
        for request in requests:
            list(engine.stream(request))
    assert compiled.count == 0
    assert [list(request.completion().tokens) for request in requests] == expected


@slow
def test_drawn_tokens_in_one_graph_with_decode(model, letters):
    """Filters, penalties and seeds: what one graph draws, cut graphs draw."""
    sampling = [
        qwen35.Sampling(1.0, seed=3, top_k=9, logprobs=2),
        qwen35.Sampling(0.8, seed=4, top_p=0.9, repetition_penalty=1.3, logprobs=2),
        qwen35.Sampling(banned=[4], logprobs=2),
    ]
    before, said = set(every_signature()), []
    for segments in (1, "auto"):
        _, params = model(NAMES[0], segments=segments, chunk=24)  # no other test's graphs
        asked = {"max_new_tokens": 12, "sampling": sampling}
        said.append(qwen35.generate(params, letters, [[1, 2, 3], [4] * 9, [7]], **asked))
    one, cut = said
    assert [row.tokens for row in one] == [row.tokens for row in cut]
    for a, b in zip(one, cut, strict=True):
        for ours, theirs in zip(a.logprobs, b.logprobs, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)
    made = [line for line in every_signature() if line not in before]
    assert sum("decode_and_choose(" in line for line in made) == 2
    assert not any("one graph" in line for line in made)


def every_signature():
    return [line for step in generation.ALL for line in step.signatures]


def test_pictures_in_prompts(model):
    """Embeddings and positions are given: a prefill in two pieces that cut a picture, and decode
    after it, as eagerly on the CPU."""
    _, params = model(NAMES[0], segments="auto")
    config = dataclasses.replace(params.config, image_token_id=5)
    params = dataclasses.replace(params, config=config)
    draw = torch.Generator().manual_seed(9)
    tokens = torch.randint(10, config.vocab_size, (2, 12), generator=draw)
    tokens[0, 3:9] = 5
    embeds = torch.randn(2, 12, config.hidden_size, generator=draw)
    positions = torch.randint(20, (3, 2, 12), generator=draw)
    results = []
    for device in ("cpu", "xla"):
        own, said = qwen35.device_put(params, device), []
        state = qwen35.init_state(own, 2, 16)
        prefill, decode = steps() if device == "xla" else (qwen35.prefill, qwen35.decode)
        for first, last in ((0, 6), (6, 12)):
            part = (tokens[:, first:last], embeds[:, first:last], positions[..., first:last])
            ids, vectors, places = (piece.contiguous() for piece in part)
            values = qwen35.device_put((ids, None, vectors, places), device)
            logits, state = prefill(own, state, *values)
            said.append(logits)
        for token in ([11, 12], [13, 14]):
            logits, state = decode(own, state, qwen35.device_put(torch.tensor(token), device))
            said.append(logits)
        results.append(qwen35.device_put((said, state), "cpu"))
    assert not any("one graph" in step.signatures[0] for step in (prefill, decode))
    eager, compiled = map(pytree.tree_leaves, results)
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=0, atol=1e-5 * max(1, b.abs().max()))


@pytest.mark.parametrize(
    ("name", "runs_of_decode", "runs_of_prefill"),
    [
        ("conv2_interval2_gqa6", 1, 3),  # a run; a layer of each kind, and the last one
        ("only_attention", 1, 2),
        pytest.param("ddadadad", 2, 3, marks=slow),  # the first and the last layer share one
        ("ddaddad", 2, 3),
    ],
)
def test_equal_runs_share_a_graph(name, runs_of_decode, runs_of_prefill, model):
    """A graph for each run that is not like another, and one for the rest; of a prompt for each
    kind of neighbours, and one for the last layer: no other is compiled with it."""
    _, params = model(name, segments="auto", chunk=32)  # no other test's graphs
    state = qwen35.init_state(params, 1, 16)
    token, tokens = put(torch.tensor([1]), torch.zeros(1, 5, dtype=torch.int64))
    for step, argument, count in (
        (qwen35.decode, token, runs_of_decode),
        (qwen35.prefill, tokens, runs_of_prefill),
    ):
        names = []
        with on_compile(lambda event, n=names: event.phase == "done" and n.append(event.name)):
            qwen35.jit(step)(params, state, argument)
            qwen35.jit(step)(params, state, argument)  # another function of the same layers
        own = step.__name__
        assert names == ["_run"] * count + [own] + [own]
    assert sizes_of([type(layer) for layer in params.layers], "auto")[0] == SIZES[name]


def test_an_old_state_is_a_value(model):
    """Not donated, it can be continued twice; donated, it says so."""
    _, params = model(NAMES[0], segments=2)
    token = put(torch.tensor([3]))[0]
    old = qwen35.init_state(params, 1, 16)
    once, again = (qwen35.jit(qwen35.decode)(params, old, token)[0].cpu() for _ in range(2))
    assert torch.equal(once, again)
    qwen35.jit(qwen35.decode, donate="state")(params, old, token)
    with pytest.raises(RuntimeError, match="donated"):
        old.layers[-1][0].cpu()


@pytest.mark.parametrize(
    ("name", "segments", "reason"),
    [
        ("equal_heads", "auto", "the kinds of its 4 layers don't repeat"),
        ("attention_first_explicit_types", "auto", "the kinds of its 5 layers don't repeat"),
        ("attention_first_explicit_types", 2, "its 5 layers make no 2 equal segments"),
        ("conv2_interval2_gqa6", 3, "its 4 layers make no 3 equal segments; 2 would do"),
    ],
)
def test_layers_that_can_not_be_cut_say_why(name, segments, reason, model):
    case, params = model(name, segments=segments)
    tokens = case.tokens(1, 8, seed=2)
    prefill = qwen35.jit(qwen35.prefill)
    logits, _ = prefill(params, qwen35.init_state(params, 1, 8), put(tokens)[0])
    check(logits, case.logits(tokens), [8], [0])
    assert prefill.signatures[0].endswith(f"(one graph: {reason})")


_LAYERS = {"d": DeltaNetLayer(*range(10)), "a": AttentionLayer(*range(8))}
_patterns = st.text("da", min_size=1, max_size=5)
_kinds = st.one_of(
    st.text("da", min_size=1, max_size=24),
    st.builds(lambda a, b, n, c: a + b * n + c, _patterns, _patterns, st.integers(1, 8), _patterns),
)


@given(_kinds, st.integers(1, 12))
def test_runs_are_all_layers_in_order(kinds, number):
    layers = tuple(_LAYERS[kind] for kind in kinds)
    for segments in (number, "auto"):
        cut = runs(layers, None, Runtime(segments=segments))
        assert sum((tuple(run.layers) for run in cut), ()) == layers
        own = ["".join("da"[type(one) is AttentionLayer] for one in run.layers) for run in cut]
        if segments != "auto":
            assert len(cut) in (1, segments) and len(set(own)) == 1
        elif len(cut) > 1:
            # All but a shorter one at either end are equal.
            size = max(map(len, own))
            equal = own[len(own[0]) < size : len(own) - (len(own[-1]) < size)]
            assert len(equal) > 1 and len(set(equal)) == 1


@given(_patterns, st.integers(2, 8), _patterns)
def test_what_repeats_is_compiled_once(pattern, times, end):
    """No more layers than a period and the ends; found by trying all ways to cut."""
    kinds = pattern * times + end[: len(pattern) - 1]
    sizes, reason = sizes_of(kinds, "auto")
    assert sum(sizes) == len(kinds) and len(sizes) > 1, reason
    compiled = sum(sizes) - max(sizes) * (sizes.count(max(sizes)) - 1)
    assert compiled <= len(pattern) + len(end[: len(pattern) - 1])


@pytest.mark.parametrize("segments", [0, -1, 1.5, "all", None])
def test_what_is_no_number_of_segments(segments):
    with pytest.raises(ValueError, match="segments"):
        Runtime(segments=segments)


def test_another_backend_does_not_cut():
    with pytest.raises(ValueError, match="'inductor' makes steps one graph: segments must be 1"):
        Runtime(backend="inductor", segments=2)
