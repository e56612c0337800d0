"""bfloat16 against transformers' bfloat16, both measured from the fp32 truth.

Truth is the fp32 model with the weights already rounded to bfloat16, so what is compared is the
arithmetic alone: what is kept in fp32 on the way, and how often a value is rounded.
"""

import copy
import math

import pytest
import torch

import qwen35

LENGTH = 129
HEADER = "model  rms error: ours  transformers  ratio  |  argmax: ours=transformers  ours=fp32"


def rms(x):
    return x.double().square().mean().sqrt().item()


def same_argmax(a, b):
    return (a.argmax(-1) == b.argmax(-1)).double().mean().item()


@pytest.fixture(scope="session")  # the cases of other modules run in between
def report(pytestconfig):
    """Lines to be printed at the end, whatever is captured."""
    lines = []
    yield lines
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + "\n".join([HEADER, *lines]))


@pytest.fixture(scope="module")
def low_models(reference, tmp_path_factory):
    """low_models(case): transformers' model in bfloat16, the same weights in fp32, ours in bf16."""

    def build(name):
        low = copy.deepcopy(reference(name).model).bfloat16()
        directory = tmp_path_factory.mktemp(name)
        low.save_pretrained(directory)
        return low, copy.deepcopy(low).float(), qwen35.load(directory, dtype="bfloat16")

    return build


def test_prefill_is_as_close_to_fp32_as_transformers(case, low_models, report):
    """Root-mean-square error of the logits at most 1.05 times transformers'.

    Measured ratios are 0.83 to 0.99: two sequences of rounding errors of about the same number
    of roundings differ by some per cent by chance.
    """
    low, exact, params = low_models(case.name)
    tokens = case.tokens(2, LENGTH, seed=11)
    with torch.no_grad():
        theirs = low(tokens, use_cache=False).logits.float()
        truth = exact(tokens, use_cache=False).logits
    state = qwen35.init_state(params, batch=2, capacity=LENGTH)
    hidden, _ = qwen35.forward(params, state, tokens)
    ours = qwen35.logits(params, hidden)
    assert hidden.dtype == torch.bfloat16
    assert ours.dtype == torch.float32

    error, their_error = rms(ours - truth), rms(theirs - truth)
    report.append(
        f"{case.name}: {error:.2e}  {their_error:.2e}  {error / their_error:.2f}  |  "
        f"{same_argmax(ours, theirs):.1%}  {same_argmax(ours, truth):.1%} "
        f"(transformers {same_argmax(theirs, truth):.1%})"
    )
    assert error <= 1.05 * their_error


@pytest.mark.parametrize("name", ["value_heads_x3_gqa6_odd_hidden", "published_head_sizes"])
def test_decode_is_as_close_to_fp32_as_transformers(reference, low_models, name):
    """The same for tokens fed one at a time, where the recurrent state is carried along."""
    case = reference(name)
    low, exact, params = low_models(name)
    tokens = case.tokens(2, 64, seed=12)
    state = qwen35.init_state(params, batch=2, capacity=64)
    past, ours, theirs = None, [], []
    with torch.no_grad():
        truth = exact(tokens, use_cache=False).logits
        for t in range(64):
            out = low(tokens[:, t : t + 1], past_key_values=past, use_cache=True)
            past = out.past_key_values
            theirs.append(out.logits[:, 0].float())
            logits, state = qwen35.decode(params, state, tokens[:, t])
            ours.append(logits)
    error, their_error = (rms(torch.stack(x, 1) - truth) for x in (ours, theirs))
    assert error <= 1.05 * their_error


def test_a_long_sequence_stays_finite_and_close(reference, low_models):
    """1000 tokens: the error does not grow with the position."""
    case = reference("only_deltanet")
    _, exact, params = low_models("only_deltanet")
    tokens = case.tokens(1, 1000, seed=13)
    state = qwen35.init_state(params, batch=1, capacity=1000)
    hidden, _ = qwen35.forward(params, state, tokens)
    with torch.no_grad():
        error = qwen35.logits(params, hidden) - exact(tokens, use_cache=False).logits
    assert math.isfinite(rms(error))
    assert rms(error[:, -200:]) <= 1.5 * rms(error[:, 200:400])


@pytest.mark.parametrize("name", ["value_heads_x3_gqa6_odd_hidden", "published_head_sizes"])
def test_xla_is_as_close_to_fp32_as_transformers(reference, low_models, name):
    """Compiled, where weights and caches are bfloat16's bits and activations are float32: a chunk
    of a prompt, then tokens one by one, in one row and in several."""
    case = reference(name)
    low, exact, params = low_models(name)
    params = qwen35.device_put(params, "xla")
    assert params.dtype == torch.bfloat16 and params.runtime.forms == "xla_cpu"
    prefill, decode = qwen35.jit(qwen35.prefill), qwen35.jit(qwen35.decode, donate=("state",))
    for rows in (1, 3):
        tokens = case.tokens(rows, 48, seed=12)
        with torch.no_grad():
            theirs = low(tokens, use_cache=False).logits[:, 23:].float()
            truth = exact(tokens, use_cache=False).logits[:, 23:]
        put = qwen35.device_put(tokens, "xla")
        logits, state = prefill(params, qwen35.init_state(params, rows, 64), put[:, :24] * 1)
        ours = [logits]
        for t in range(24, 48):
            logits, state = decode(params, state, put[:, t] * 1)
            ours.append(logits)
        kept = {name: t.dtype for layer in state.layers for name, t in layer._asdict().items()}
        assert kept.pop("recurrent") == torch.float32 and set(kept.values()) == {torch.int16}
        error = rms(torch.stack([each.cpu() for each in ours], 1) - truth)
        assert error <= 1.05 * rms(theirs - truth)
