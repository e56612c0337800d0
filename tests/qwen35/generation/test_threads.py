"""Several threads at once on the XLA device: calls take turns, and each gets what it gets alone.

What is right are transformers' tokens. Graphs are compiled in the midst of it: a trace must forget
nothing that another thread has just begun.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import qwen35
from qwen35.files.saved_state import fingerprint
from qwen35.model.rows import grow

CASE = "value_heads_x2_tied"
STEPS = 6
THREADS = 4


@pytest.fixture
def expected(reference):
    """Prompts of several lengths with transformers' continuation, ended where the model ends."""
    case, found = reference(CASE), []
    for length in (3, 20, 70):
        tokens, chosen, _ = case.greedy(length, STEPS)
        end = case.config.eos_token_id
        rows = [row[: row.index(end) + 1] if end in row else row for row in chosen.tolist()]
        found.append((tokens.tolist(), rows))
    return found


@pytest.fixture
def params(load):
    """On the device, of a configuration for which nothing has been compiled."""
    known = load(CASE, "xla")
    config = dataclasses.replace(known.config, max_position_embeddings=911)
    return dataclasses.replace(known, config=config)


def at_once(function, arguments):
    """Results of calls from threads that all begin together; the first error is raised."""
    with ThreadPoolExecutor(THREADS) as pool:
        return [future.result() for future in [pool.submit(function, *a) for a in arguments]]


@pytest.mark.slow
def test_generate_from_several_threads(params, letters, expected):
    def run(number):
        prompts, _ = expected[number % len(expected)]
        said = qwen35.generate(params, letters, prompts, max_new_tokens=STEPS)
        return [list(row.tokens) for row in said]

    for number, rows in enumerate(at_once(run, [(n,) for n in range(24)])):
        assert rows == expected[number % len(expected)][1]


def test_stream_in_one_thread_and_compilations_in_others(params, letters, expected):
    """Steps of one call between compilations, states and copies of others."""
    prompts, right = expected[1]

    def read():
        said = [[] for _ in prompts]
        for piece in qwen35.stream(params, letters, prompts, max_new_tokens=STEPS):
            said[piece.row].append(piece.token)
        return said

    def compute(number):
        state = qwen35.init_state(params, 1, 32 + number)
        state = grow(state, 64 + number)
        twice = qwen35.jit(lambda x: x * 2 + number)
        x = qwen35.device_put(torch.arange(number + 1.0), "xla")
        found = qwen35.device_put((twice(x), state), "cpu")
        return found[0].tolist(), sum(leaf.abs().sum() for leaf in found[1][:2]).item()

    def work(number):
        return read() if number % 4 == 0 else compute(number)

    name = fingerprint(params)
    jobs = at_once(lambda n: (work(n), fingerprint(params)), [(n,) for n in range(20)])
    for number, (found, seen) in enumerate(jobs):
        assert seen == name
        if number % 4 == 0:
            assert found == right
        else:
            assert found == ([2 * x + number for x in range(number + 1)], 0)


@pytest.mark.slow
def test_each_thread_keeps_its_own_state(params, expected):
    """Compiled steps over states that each thread donates."""
    step = qwen35.jit(qwen35.decode, donate=("state",))
    prefill = qwen35.jit(qwen35.prefill, donate=("state",))

    def run(number):
        prompts, _ = expected[number % len(expected)]
        tokens = torch.tensor(prompts)
        state = qwen35.init_state(params, len(prompts), 100)
        logits, state = prefill(params, state, qwen35.device_put(tokens, "xla"))
        chosen = []
        for _ in range(STEPS):
            token = qwen35.device_put(logits, "cpu").argmax(-1)
            chosen.append(token.tolist())
            logits, state = step(params, state, qwen35.device_put(token, "xla"))
        return list(map(list, zip(*chosen, strict=True)))

    for number, rows in enumerate(at_once(run, [(n,) for n in range(12)])):
        for row, right in zip(rows, expected[number % len(expected)][1], strict=True):
            assert row[: len(right)] == right
