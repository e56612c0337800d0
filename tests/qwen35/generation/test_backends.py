"""Generation compiled by a backend of torch.compile, which the parameters' Runtime names."""

from __future__ import annotations

import dataclasses
import itertools
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

import qwen35
from qwen35.xla.observers import on_compile
from qwen35.xla.unusable import Donated

PROMPT, STEPS = 6, 8
SAMPLED = qwen35.Sampling(1.0, seed=3, top_k=20, top_p=0.9, repetition_penalty=1.2, logprobs=2)

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="inductor needs a C++ compiler"
)
# A backend, and how far its log probabilities may be from those of eager steps.
BACKENDS = [
    ("aot_eager", 0),
    pytest.param("inductor", 1e-5, marks=needs_compiler),
    ("openxla", 1e-5),
]


@pytest.fixture(scope="module")
def params(two_layers):
    return qwen35.load(two_layers.directory)


def placed(params, backend):
    """Parameters whose steps a backend compiles, where it wants them."""
    return qwen35.device_put(
        params.with_runtime(backend=backend), "xla" if backend == "openxla" else "cpu"
    )


def assert_greedy_tokens_are_those_of_transformers(params, two_layers, letters, backend, tolerance):
    """Log probabilities are those of eager steps; no step is compiled again, or in two pieces."""
    tokens, chosen, logits = two_layers.greedy(PROMPT, STEPS)
    best, second = logits.topk(2).values.unbind(-1)
    assert (best - second).min() > 1e-3, "a near tie would tell nothing"
    compiled = params.with_runtime(backend=backend)
    sampling = qwen35.Sampling(ignore_eos=True, logprobs=2)
    how = {"max_new_tokens": STEPS, "sampling": sampling}
    eager = qwen35.device_put(params, "cpu").with_runtime(backend=None)
    eager = qwen35.generate(eager, letters, tokens.tolist(), **how)
    counters.clear()
    for count in (3, 0):  # prefill, choose, decode and choose
        with on_compile() as seen:
            said = qwen35.generate(compiled, letters, tokens.tolist(), **how)
        assert [list(row.tokens) for row in said] == chosen.tolist()
        for row, other in zip(said, eager, strict=True):
            for mine, theirs in zip(row.logprobs, other.logprobs, strict=True):
                assert mine.logprob == pytest.approx(theirs.logprob, rel=0, abs=tolerance)
        assert seen.count == count
    assert counters["stats"]["unique_graphs"] == 3 and not counters["graph_break"]


@pytest.mark.usefixtures("nothing_compiled")
def test_greedy_tokens_are_those_of_transformers(params, two_layers, letters):
    assert_greedy_tokens_are_those_of_transformers(params, two_layers, letters, "aot_eager", 0)


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("nothing_compiled")
def test_greedy_tokens_by_inductor(params, two_layers, letters):
    assert_greedy_tokens_are_those_of_transformers(params, two_layers, letters, "inductor", 1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_compiled")
def test_greedy_tokens_by_openxla(params, two_layers, letters):
    """torch-xla's own way of torch.compile, on the XLA device; in the plain forms."""
    remote = placed(params, "openxla")
    assert remote.runtime.forms == "plain"
    assert_greedy_tokens_are_those_of_transformers(remote, two_layers, letters, "openxla", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "tolerance"), BACKENDS)
def test_sampled_tokens_are_those_of_eager_steps(params, letters, backend, tolerance):
    """Penalties, filters, log probabilities."""
    prompts = [[1, 2, 3], [5, 6, 7, 8, 9]]
    eager, compiled = (
        qwen35.generate(one, letters, prompts, max_new_tokens=STEPS, sampling=SAMPLED)
        for one in (params, placed(params, backend))
    )
    assert [row.tokens for row in compiled] == [row.tokens for row in eager]
    for row, other in zip(compiled, eager, strict=True):
        for mine, theirs in zip(row.logprobs, other.logprobs, strict=True):
            assert mine.logprob == pytest.approx(theirs.logprob, rel=0, abs=tolerance)
            assert [one for one, _ in mine.top] == [one for one, _ in theirs.top]


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=needs_compiler), "openxla"]
)
def test_an_engine_says_what_it_says_eagerly_and_reads_no_donated_state(params, letters, backend):
    """More requests than slots: rows are prefilled beside others, put into slots and taken."""
    prompts = [[1, 2, 3], [5, 6, 7, 8, 9], [4], [2, 2]]
    how = {"slots": 2, "capacity": 24, "prefill_sizes": 1}
    eager = qwen35.Engine(params, letters, **how)
    expected = [said.tokens for said in eager.map(prompts, max_new_tokens=STEPS)]
    engine = qwen35.Engine(placed(params, backend), letters, **how)
    before = engine.batch.rows
    assert [said.tokens for said in engine.map(prompts, max_new_tokens=STEPS)] == expected
    held = [before.logits, before.state.position, *itertools.chain(*before.state.layers)]
    assert all(type(tensor) is Donated for tensor in held)
    with on_compile() as again:
        assert [said.tokens for said in engine.map(prompts, max_new_tokens=STEPS)] == expected
    assert again.count == 0


def test_a_mesh_of_several_ranks_has_no_backend():
    with pytest.raises(ValueError, match="backend 'inductor' is for one device, not 2 ranks"):
        qwen35.Runtime(mesh=qwen35.Mesh(tp=2), backend="inductor")


def test_a_backend_wants_its_own_device(params, letters):
    remote = qwen35.device_put(params, "xla").with_runtime(backend="aot_eager")
    with pytest.raises(ValueError, match="on xla:0, but backend 'aot_eager' runs on 'cpu'"):
        qwen35.generate(remote, letters, [[1]], max_new_tokens=1)


def test_the_backend_is_a_static_choice_that_travels(params):
    """It stays when other choices change, or parameters move to another device."""
    compiled = params.with_runtime(backend="inductor")
    assert compiled.with_runtime(chunk=32).runtime.backend == "inductor"
    moved = qwen35.device_put(qwen35.device_put(compiled, "xla"), "cpu")
    assert moved.runtime == dataclasses.replace(params.runtime, backend="inductor")
    assert torch.equal(moved.head, params.head)
