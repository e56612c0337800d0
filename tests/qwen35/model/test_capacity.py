"""Past the capacity: logits are NaN for that row, whatever compiled it, and others are untouched.

Eagerly on the CPU such a step is refused (test_state). A compiled one can't be: there the caller
counts, and who forgets has to notice.
"""

import pytest
import torch

import qwen35

CAPACITY = 8
CONFIG = qwen35.Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    layer_types=("linear_attention", "full_attention"),
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    linear_num_key_heads=1,
    linear_num_value_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
)


def load(dtype, device, forms="auto"):
    runtime = qwen35.Runtime(forms=forms, chunk=4)
    return qwen35.init_params(CONFIG, dtype=dtype, device=device, runtime=runtime)


def put(*values):
    return qwen35.device_put(torch.tensor(values), "xla")


def tolerance(params):
    """Of rows that differ in what stands beside them, or in the room behind them."""
    return {"rtol": 0, "atol": 1e-5 if params.dtype == torch.float32 else 0.02}


@pytest.mark.parametrize(
    ("dtype", "forms"), [("float32", "plain"), ("float32", "xla_cpu"), ("bfloat16", "xla_cpu")]
)
def test_decode_past_the_capacity(dtype, forms):
    """The row that is full has NaN from the first token that has no slot; the other goes on as if
    it were alone with room to spare."""
    params = load(dtype, "xla", forms)
    decode = qwen35.jit(qwen35.decode)
    # Row 0 is full after eight tokens, row 1 idle until then.
    state = alone = qwen35.init_state(params, batch=2, capacity=CAPACITY)
    for token in range(CAPACITY):
        logits, state = decode(params, state, put(token, token), put(True, False))
    assert logits.cpu().isfinite().all()  # the last slot is one to use
    for token in (5, 6, 7):
        logits, state = decode(params, state, put(token, token), put(True, True))
        expected, alone = decode(params, alone, put(token, token), put(True, True))
        past, beside = logits.cpu()
        assert past.isnan().all()
        torch.testing.assert_close(beside, expected.cpu()[1], **tolerance(params))
    assert state.position.tolist() == [CAPACITY + 3, 3]
    past, beside = decode(params, state, put(5, 5), put(False, True))[0].cpu()
    assert (past == 0).all() and beside.isfinite().all()  # an idle row has no logits


def test_prefill_and_forward_past_the_capacity():
    """Hidden states are right up to the last slot, also those of a step that passes it."""
    params, eager = load("float32", "xla"), load("float32", "cpu")
    tokens = list(range(10, 20)), list(range(30, 40))
    lengths = (10, 7)
    empty = qwen35.init_state(params, batch=2, capacity=CAPACITY)
    hidden, after = qwen35.jit(qwen35.forward)(params, empty, put(*tokens), put(*lengths))
    roomy = qwen35.init_state(eager, batch=2, capacity=12)
    expected, _ = qwen35.forward(eager, roomy, torch.tensor(tokens), torch.tensor(lengths))
    hidden = hidden.cpu()
    torch.testing.assert_close(hidden[:, :7], expected[:, :7], **tolerance(params))
    assert hidden[0, :CAPACITY].isfinite().all() and hidden[0, CAPACITY:].isnan().all()
    prefill = qwen35.jit(qwen35.prefill)
    past, beside = prefill(params, empty, put(*tokens), put(*lengths))[0].cpu()
    assert past.isnan().all() and beside.isfinite().all()
    # Growing afterwards does not bring back what was written nowhere.
    grown = qwen35.grow(after, 24)
    past, beside = prefill(params, grown, put(*tokens), put(2, 2))[0].cpu()
    assert past.isnan().all() and beside.isfinite().all()


def test_a_model_without_attention_has_no_end(reference):
    params = qwen35.load(reference("only_deltanet").directory)
    state = qwen35.init_state(params, batch=1, capacity=2)
    logits, _ = qwen35.prefill(params, state, torch.tensor([[1, 2, 3, 4]]))
    assert logits.isfinite().all()
