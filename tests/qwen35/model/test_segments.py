"""Steps cut into graphs of some layers: what transformers says, and one graph to rounding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

import qwen35
from qwen35.model.params import AttentionLayer, DeltaNetLayer, Params, Runtime
from qwen35.model.segments import runs
from qwen35.xla.observers import on_compile

# Of periods of 2, 3 (and 2 layers more), 1 and 1.
NAMES = [
    "conv2_interval2_gqa6",
    "attention_first_explicit_types",
    "only_deltanet",
    "only_attention",
]
RUNS = {"conv2_interval2_gqa6": 2, "attention_first_explicit_types": 2, "only_deltanet": 3}
TOLERANCE = 1e-4  # as in test_parity: fp32 rounding at logit scale 0.5


def steps():
    return qwen35.jit(qwen35.prefill, donate="state"), qwen35.jit(qwen35.decode, donate="state")


@pytest.mark.parametrize("name", NAMES)
def test_ragged_prompts_and_rows_that_pause(name, reference, load):
    """Against transformers, and against the one graph that holds all: state and logits."""
    case = reference(name)
    tokens = case.tokens(3, 40, seed=5)
    truth = case.logits(tokens)
    results = []
    for segments in (1, "auto"):
        params = load(name, "xla").with_runtime(segments=segments)
        prefill, decode = steps()
        state = qwen35.init_state(params, 3, 48)
        seen = [0, 0, 0]
        for piece in ([9, 3, 0], [4, 9, 1]):
            chunk = torch.full((3, 9), -100)
            for row, length in enumerate(piece):
                chunk[row, :length] = tokens[row, seen[row] : seen[row] + length]
                seen[row] += length
            logits, state = prefill(params, state, *put(chunk, torch.tensor(piece)))
        check(logits, truth, seen, [0, 1, 2])
        for number in range(12):
            active = [number % 2 == 0, True, number % 3 > 0]
            token = torch.tensor([tokens[row, seen[row]] for row in range(3)])
            logits, state = decode(params, state, *put(token, torch.tensor(active)))
            seen = [count + many for count, many in zip(seen, active, strict=True)]
            check(logits, truth, seen, [row for row in range(3) if active[row]])
        assert [step.compile_count for step in (prefill, decode)] == [1, 1]
        assert not any("one graph" in step.signatures[0] for step in (prefill, decode))
        results.append(pytree.tree_leaves(qwen35.device_put((logits, state), "cpu")))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * max(1, theirs.abs().max()))


def put(*tensors):
    return qwen35.device_put(tensors, "xla")


def check(logits, truth, seen, rows):
    for row in rows:
        expected = truth[row, seen[row] - 1]
        torch.testing.assert_close(logits[row].cpu(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "segments"), [("conv2_interval2_gqa6", 2), ("attention_first_explicit_types", "auto")]
)
def test_greedy_tokens_of_generate_and_engine(name, segments, reference, load, letters):
    prompt, chosen, _ = reference(name).greedy(24, 64)
    params = load(name, "xla").with_runtime(segments=segments)
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


@pytest.mark.parametrize("name", NAMES[:3])
def test_equal_runs_share_a_graph(name, load):
    """Two graphs for a decode step: of a run, and of the rest; odd tails have one of their own."""
    params = load(name, "xla").with_runtime(segments="auto", chunk=32)  # no other test's graphs
    token = put(torch.tensor([1]))[0]
    names = []
    with on_compile(lambda event: event.phase == "done" and names.append(event.name)):
        decode = qwen35.jit(qwen35.decode)
        decode(params, qwen35.init_state(params, 1, 16), token)
    odd = name == "attention_first_explicit_types"
    assert names == ["_run"] * (1 + odd) + ["decode"]
    assert len(runs(params)) == RUNS[name]


@pytest.mark.parametrize(("name", "count"), [("conv2_interval2_gqa6", 3), ("only_attention", 2)])
def test_of_a_prompt_the_last_layer_alone_has_another_graph(name, count, load):
    """A graph for each kind of layer, and one for the last: no other kind is compiled with it."""
    params = load(name, "xla").with_runtime(segments="auto", chunk=16)  # no other test's graphs
    tokens, names = put(torch.zeros(1, 5, dtype=torch.int64))[0], []
    with on_compile(lambda event: event.phase == "done" and names.append(event.name)):
        qwen35.jit(qwen35.prefill)(params, qwen35.init_state(params, 1, 16), tokens)
    assert names == ["_run"] * count + ["prefill"]


def test_an_old_state_is_a_value(load):
    """Not donated, it can be continued twice; donated, it says so."""
    params = load(NAMES[0], "xla").with_runtime(segments=2)
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
        ("attention_first_explicit_types", 2, "its 5 layers make no 2 equal segments"),
        ("conv2_interval2_gqa6", 3, "its 4 layers make no 3 equal segments; 2 would do"),
    ],
)
def test_layers_that_can_not_be_cut_say_why(name, segments, reason, reference, load):
    params = load(name, "xla").with_runtime(segments=segments)
    tokens = reference(name).tokens(1, 8, seed=2)
    prefill = qwen35.jit(qwen35.prefill)
    logits, _ = prefill(params, qwen35.init_state(params, 1, 8), put(tokens)[0])
    check(logits, reference(name).logits(tokens), [8], [0])
    assert prefill.signatures[0].endswith(f"(one graph: {reason})")


@given(st.lists(st.sampled_from("da"), min_size=1, max_size=24), st.integers(1, 12))
def test_runs_are_all_layers_in_order(kinds, number):
    made = {"d": DeltaNetLayer(*range(10)), "a": AttentionLayer(*range(8))}
    layers = tuple(made[kind] for kind in kinds)
    for segments in (number, "auto"):
        runtime = Runtime(segments=segments)
        cut = runs(Params(None, layers, None, None, None, None, runtime))
        assert sum((tuple(run.layers) for run in cut), ()) == layers
        own = ["".join("da"[type(one) is AttentionLayer] for one in run.layers) for run in cut]
        if segments == "auto":
            assert all(one == own[0] for one in own[:-1]) and own[0].startswith(own[-1])
        else:
            assert len(cut) in (1, segments) and len(set(own)) == 1


@pytest.mark.parametrize("segments", [0, -1, 1.5, "all", None])
def test_what_is_no_number_of_segments(segments):
    with pytest.raises(ValueError, match="segments"):
        Runtime(segments=segments)
