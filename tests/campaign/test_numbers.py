"""Numbers at the ends of float32 on XLA: logits, settings of sampling, weights, activations.

Nothing hangs or ends in another error than a sentence, the greedy choice from finite logits is the
largest, a draw is one of those that can come, and no row feels what another one holds.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import Fault, outcome
from torch.utils import _pytree as pytree

import qwen35
from qwen35 import Sampling
from qwen35.generation.sampling import bias_for, choose, controls_for, counts_for
from qwen35.xla import trees

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "qwen35" / "generation"))

from engine_faults import CONFIG, Letters, check_whole, new_engine

V = 300
LEAST = float(np.finfo(np.float32).tiny)  # what is nearer to 0 may be 0 on a device
SCALES = (1e-45, 1e-40, 1e-30, 1e-3, 1.0, 1.0, 30.0, 1e5, 1e20, 1e38)
ODD = (0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 1e30, -math.inf, 1.0)
BROKEN = (math.nan, math.inf)
FURTHEST = 80.0  # below the largest, in units of the temperature: no draw of float32 gets there


def draw_logits(draw, broken: bool) -> np.ndarray:
    """A row of logits with odd ones among them; infinite only where it is to be broken."""
    values = np.random.default_rng(draw.randrange(2**32)).standard_normal(V)
    most = np.finfo(np.float32).max
    row = np.clip(values * draw.choice(SCALES), -most, most).astype(np.float32)
    for _ in range(draw.choice((0, 1, 3, 100))):
        row[draw.randrange(V)] = draw.choice(ODD)
    if broken:
        row[draw.randrange(V)] = draw.choice(BROKEN)
    if draw.random() < 0.1:
        row[:] = draw.choice(ODD)
    return row


def draw_sampling(draw) -> Sampling:
    """Settings from one end of what is taken to the other."""
    options = {
        "temperature": (0, 0, 1e-320, 1e-45, 1e-38, 1e-5, 0.7, 1.0, 50.0, 1e30, 3e38),
        "top_p": (1.0, 1.0, 0.9, 1e-3, 1e-30, 1e-300, 1 - 2**-24),
        "top_k": (0, 0, 1, 2, 64, 65, V, V + 1, 2**24 - 1),
        "min_p": (0.0, 0.0, 1e-300, 0.1, 1.0),
        "repetition_penalty": (1.0, 1.0, 1.3, 1e-30, 1e30),
        "presence_penalty": (0.0, 0.0, 1e30, -1e30, 1e-45),
        "frequency_penalty": (0.0, 0.0, 1e30, -1e30, 0.1),
        "seed": (0, 1, 2**62 - 1),
    }
    made = {name: draw.choice(values) for name, values in options.items()}
    if draw.random() < 0.5:
        made["logit_bias"] = {draw.randrange(V): draw.choice((1e30, -1e30, 5.0, 1e-45))}
    if draw.random() < 0.3:
        made["banned"] = draw.sample(range(V), draw.choice((1, 10, V - 1)))
    return Sampling(**made)


def adjusted(row: np.ndarray, sampling: Sampling, counts: np.ndarray) -> np.ndarray:
    """A row's logits with bias and penalties, by the formulas, in float32."""
    with np.errstate(all="ignore"):
        row = row.copy()
        for token, value in sampling.biases:
            row[token] += np.float32(value)
        row[list(sampling.banned)] = -math.inf
        penalty = np.float32(sampling.repetition_penalty)
        row = np.where(counts > 0, np.where(row > 0, row / penalty, row * penalty), row)
        times = (counts % 2**20).astype(np.float32)
        row -= np.float32(sampling.presence_penalty) * (times > 0)
        return row - np.float32(sampling.frequency_penalty) * times


def check_token(token: int, row: np.ndarray, sampling: Sampling, counts: np.ndarray) -> None:
    """A token that can come, of logits that are no NaN: not forbidden, and near the largest."""
    if not 0 <= token < V:
        raise Fault(f"token {token} of {V}")
    row = adjusted(row, sampling, counts)
    if np.isnan(row).any() or np.isposinf(row).any() or row.max() <= -np.finfo(np.float32).max:
        return  # what is not banned may be as low as what is
    if token in sampling.banned:
        raise Fault(f"token {token} is banned")
    below = float(row.max()) - float(row[token])
    temperature = float(np.float32(sampling.temperature))
    if temperature < LEAST:
        temperature = 0.0
    penalty = max(sampling.repetition_penalty, 1 / sampling.repetition_penalty)
    if below > 2 * LEAST * penalty + FURTHEST * temperature:
        raise Fault(f"token {token} lies {below} below the largest, {row.max()}")


@pytest.fixture(scope="module")
def chosen():
    """chosen(logits, samplings, counts): the tokens of both rows, on XLA; two graphs serve all."""
    compiled = {
        short: qwen35.jit(lambda *a, short=short: choose(*a, short=short)) for short in (0, 1)
    }

    def run(logits: np.ndarray, samplings: list[Sampling], counts: np.ndarray) -> list[int]:
        arguments = (
            torch.from_numpy(logits), controls_for(samplings, V, everything=True),
            torch.tensor([5, 9], dtype=torch.int32), torch.from_numpy(counts),
            bias_for(samplings, V),
        )  # fmt: skip
        short = all(sampling.short for sampling in samplings)
        choice = compiled[short](*qwen35.device_put(arguments, "xla"))
        return qwen35.device_put(choice.token, "cpu").tolist()

    for top_k in (0, 1):  # compiles
        plain = Sampling(1.0, top_k=top_k)
        run(np.zeros((2, V), np.float32), [plain] * 2, np.zeros((2, V), np.int32))
    return run


def test_choices(campaign, chosen):
    plain = np.linspace(-3, 3, V, dtype=np.float32)

    def make(draw):
        broken = draw.random() < 0.3
        row, samplings = draw_logits(draw, broken), [draw_sampling(draw) for _ in range(2)]
        prompts = [[draw.randrange(V) for _ in range(3)] for _ in range(2)]
        counts = counts_for(prompts, V).numpy()
        counts[:, [draw.randrange(V) for _ in range(5)]] += 2
        return row, samplings, counts, broken

    def check(made):
        row, samplings, counts, broken = made
        tokens = outcome(lambda: chosen(np.stack([row, plain]), samplings, counts))
        beside = outcome(lambda: chosen(np.stack([plain, plain]), samplings, counts))
        if tokens[1] != beside[1]:
            raise Fault(f"a row chooses {tokens[1]} beside this one, and else {beside[1]}")
        check_token(tokens[1], plain, samplings[1], counts[1])
        if broken:
            if not 0 <= tokens[0] < V:
                raise Fault(f"token {tokens[0]} of {V}")
            return
        check_token(tokens[0], row, samplings[0], counts[0])

    campaign.try_all("extreme logits and settings", make, check, lambda m: f"{m[1][0]}")


UNTIED = dataclasses.replace(CONFIG, tie_word_embeddings=False, vocab_size=131)
PROMPTS = [[5, 9, 2, 7, 30], [8, 4, 60]]
WEIGHTS = (math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 1e20, 1e-20, 1e-45, 0.0)


@pytest.fixture(scope="module")
def model():
    """On the CPU; what is computed with it on XLA is compiled before anything is timed."""
    params = qwen35.init_params(UNTIED, seed=1)
    on_xla = qwen35.device_put(params, "xla")
    qwen35.generate(on_xla, Letters(), PROMPTS, max_new_tokens=3, capacity=24)
    new_engine(on_xla).warm_up()
    return params


def damaged_weights(draw, params: qwen35.Params) -> qwen35.Params:
    """A copy with odd numbers in one to three of its tensors, or some tensors scaled."""
    leaves, spec = pytree.tree_flatten(params)
    for _ in range(draw.choice((1, 1, 2, 3))):
        number = draw.randrange(len(leaves))
        leaf, value = leaves[number].clone(), draw.choice(WEIGHTS)
        how = draw.randrange(4)
        if how == 0:
            leaf.view(-1)[draw.randrange(leaf.numel())] = value
        elif how == 1:
            leaf[draw.randrange(leaf.shape[0])] = value
        elif how == 2:
            leaf.fill_(value)
        else:
            leaf.mul_(draw.choice((1e30, 1e10, 1e-10, 1e-38, 1e-45, 0.0)))
        leaves[number] = leaf
    return pytree.tree_unflatten(leaves, spec)


def test_weights(campaign, model):
    """The most likely tokens are those of the logits, where these are numbers."""
    step = qwen35.jit(qwen35.prefill)
    # As `generate` pads them: times an infinite weight, padding is NaN, and 0 times that too.
    tokens = torch.tensor([row + [0] * (8 - len(row)) for row in PROMPTS])
    lengths = torch.tensor([5, 3], dtype=torch.int32)

    def check(params):
        params = qwen35.device_put(params, "xla")
        state = qwen35.init_state(params, 2, 24)
        given = qwen35.device_put((tokens, lengths), "xla")
        logits = qwen35.device_put(step(params, state, *given)[0], "cpu")
        said = outcome(
            lambda: qwen35.generate(params, Letters(), PROMPTS, max_new_tokens=3, capacity=24),
            ValueError,
        )
        if isinstance(said, ValueError):
            return
        for row, completion in zip(logits, said, strict=True):
            if not completion.tokens or not all(0 <= token < 131 for token in completion.tokens):
                raise Fault(f"tokens {completion.tokens}")
            if row.isfinite().all() and row[completion.tokens[0]] != row.max():
                raise Fault(f"token {completion.tokens[0]}, and the largest is {row.argmax()}")

    campaign.try_all("extreme weights", lambda draw: damaged_weights(draw, model), check,
                     lambda params: "")  # fmt: skip


def test_a_request_of_broken_numbers_breaks_no_other(campaign, model):
    """A token whose embedding is no number stands in one request: the others, which share its
    steps, its slot and the prefix cache with it, are as alone."""
    alone = [
        qwen35.generate(model, Letters(), [prompt], max_new_tokens=6, capacity=48)[0].tokens
        for prompt in PROMPTS
    ]
    broken = 17
    assert all(broken not in (*prompt, *row) for prompt, row in zip(PROMPTS, alone, strict=True))
    on_xla = qwen35.device_put(model, "xla")

    def make(draw):
        order = [0, 1, None, None, 0, 1]
        draw.shuffle(order)
        prompts = [
            PROMPTS[number] if number is not None
            else [*draw.choice(PROMPTS)[: draw.randrange(3)], broken, draw.randrange(131)]
            for number in order
        ]  # fmt: skip
        return draw.choice(WEIGHTS[:5]), order, prompts

    def check(made):
        value, order, prompts = made
        leaves, spec = pytree.tree_flatten(on_xla)
        table = model.embed.clone()
        table[broken] = value
        place = [id(leaf) for leaf in leaves].index(id(on_xla.embed))
        leaves[place] = qwen35.device_put(table, "xla")
        engine = new_engine(pytree.tree_unflatten(leaves, spec))
        requests = [engine.submit(prompt, max_new_tokens=6) for prompt in prompts]
        for _ in range(60):
            if engine.idle:
                break
            outcome(engine.step)
            check_whole(engine, requests)
        for request, number in zip(requests, order, strict=True):
            if not request.done:
                raise Fault("a request that never ends")
            if number is not None and tuple(request.new_tokens) != alone[number]:
                raise Fault(f"{request.new_tokens} beside broken numbers, {alone[number]} alone")
        if not all(leaf.device.type == "xla" for leaf in trees.tensors(engine.batch.rows)):
            raise Fault("slots elsewhere")

    campaign.try_all("requests of broken numbers", make, check, str)
