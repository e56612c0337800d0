"""The chunked delta rule and its single step, against a token-by-token loop in fp64.

The inputs are the ones that break chunked forms: keys that share a mean (the inverse inside a
chunk is then ill-conditioned for the usual series), beta near 1, decays from none to -90 per
token (which overflow when exp is taken of a negated sum), lengths off the chunk boundary, and
states large beside what the tokens add.
"""

import pytest
import torch

from qwen35.kernels import portable

BOUND = 1e-5  # of the largest entry; fp32 rounding through these chains is about 1e-6


def loop(query, key, value, log_decay, beta, state):
    """S *= exp(g); S += k (x) beta (v - k^T S); o = q^T S, one token after the other."""
    groups = value.shape[2] // key.shape[2]
    out = []
    for t in range(value.shape[1]):
        q, k = (x[:, t].repeat_interleave(groups, 1) for x in (query, key))
        state = state * log_decay[:, t, :, None, None].exp()
        read = torch.einsum("bhk,bhkv->bhv", k, state)
        write = beta[:, t, :, None] * (value[:, t] - read)
        state = state + torch.einsum("bhk,bhv->bhkv", k, write)
        out.append(torch.einsum("bhk,bhkv->bhv", q, state))
    return torch.stack(out, 1), state


def exact(*inputs):
    return loop(*(x.double() for x in inputs))


def make(
    *,
    tokens,
    cosine=0.0,
    beta="near one",
    decay="mixed",
    state=1.0,
    batch=2,
    heads=(2, 4),
    dims=(32, 16),
    seed=0,
):
    """Random inputs; keys have mutual cosine `cosine` in the mean, the state entries of `state`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(shape, generator=generator)

    (key_heads, value_heads), (key_dim, value_dim) = heads, dims

    def unit(x):
        return x / x.norm(dim=-1, keepdim=True)

    shared = unit(normal(batch, 1, key_heads, key_dim))
    own = unit(normal(batch, tokens, key_heads, key_dim))
    key = unit(cosine**0.5 * shared + (1 - cosine) ** 0.5 * own)
    query = unit(normal(batch, tokens, key_heads, key_dim) + shared) * key_dim**-0.5
    shape = (batch, tokens, value_heads)
    log_decay = {
        "none": torch.zeros(shape),
        "slight": uniform(-1e-3, 0.0, *shape),
        "mixed": -uniform(-7.0, 3.0, *shape).exp(),
        "strong": uniform(-90.0, -20.0, *shape),
        "spiky": torch.where(uniform(0, 1, *shape) < 0.1, -90.0, uniform(-0.01, 0.0, *shape)),
        "constant -90": torch.full(shape, -90.0),
    }[decay]
    write = {
        "near one": uniform(0.9, 1.0, *shape),
        "any": uniform(0, 1, *shape),
        "one": torch.ones(shape),
    }[beta]
    return (
        query,
        key,
        normal(batch, tokens, value_heads, value_dim),
        log_decay,
        write,
        state * normal(batch, value_heads, key_dim, value_dim),
    )


def relative_error(actual, expected):
    assert actual.dtype == torch.float32
    assert torch.isfinite(actual).all()
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


def assert_exact(inputs, actual):
    for name, ours, truth in zip(("out", "state"), actual, exact(*inputs), strict=True):
        assert relative_error(ours, truth) <= BOUND, name


@pytest.mark.parametrize("decay", ["none", "slight", "mixed", "strong", "spiky", "constant -90"])
@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("beta", ["near one", "one"])
def test_prefill_on_correlated_keys(cosine, decay, beta):
    inputs = make(tokens=150, cosine=cosine, decay=decay, beta=beta)
    assert_exact(inputs, portable.gated_delta_prefill(*inputs))


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 31, 63, 64, 65, 127, 128, 129, 300, 1000])
def test_prefill_of_any_length(tokens):
    inputs = make(tokens=tokens, cosine=0.8, decay="slight", seed=tokens)
    assert_exact(inputs, portable.gated_delta_prefill(*inputs))


@pytest.mark.parametrize("chunk", [1, 2, 16, 32, 64, 128])
@pytest.mark.parametrize("tokens", [1, 33, 129])
def test_any_chunk(chunk, tokens):
    inputs = make(tokens=tokens, cosine=0.9, decay="spiky", seed=chunk)
    assert_exact(inputs, portable.gated_delta_prefill(*inputs, chunk=chunk))


@pytest.mark.parametrize("state", [0.0, 1.0, 1e4])
def test_any_state(state):
    inputs = make(tokens=129, cosine=0.5, decay="slight", state=state)
    assert_exact(inputs, portable.gated_delta_prefill(*inputs))


@pytest.mark.parametrize("heads", [(1, 1), (2, 2), (2, 4), (2, 6), (1, 5)])
@pytest.mark.parametrize("dims", [(16, 16), (8, 24), (128, 128)])
def test_grouped_heads_and_dims(heads, dims):
    inputs = make(tokens=70, heads=heads, dims=dims, cosine=0.5)
    assert_exact(inputs, portable.gated_delta_prefill(*inputs))
    first = tuple(x[:, 0] for x in inputs[:5]) + inputs[5:]
    out, state = portable.gated_delta_step(*first)
    truth_out, truth_state = exact(*(x[:, :1] for x in inputs[:5]), inputs[5])
    assert relative_error(out, truth_out[:, 0]) <= BOUND
    assert relative_error(state, truth_state) <= BOUND


@pytest.mark.parametrize("decay", ["none", "mixed", "strong"])
def test_step_repeated(decay):
    """300 single steps on correlated keys stay with the exact loop."""
    inputs = make(tokens=300, cosine=0.8, decay=decay)
    state, out = inputs[5], []
    for t in range(300):
        o, state = portable.gated_delta_step(*(x[:, t] for x in inputs[:5]), state)
        out.append(o)
    assert_exact(inputs, (torch.stack(out, 1), state))


def test_split_anywhere():
    """Two calls give what one gives, at every kind of boundary."""
    inputs = make(tokens=140, cosine=0.8, decay="mixed")
    truth_out, truth_state = exact(*inputs)
    for at in (1, 3, 63, 64, 65, 128, 139):
        first, state = portable.gated_delta_prefill(*(x[:, :at] for x in inputs[:5]), inputs[5])
        second, state = portable.gated_delta_prefill(*(x[:, at:] for x in inputs[:5]), state)
        assert relative_error(torch.cat([first, second], 1), truth_out) <= BOUND, at
        assert relative_error(state, truth_state) <= BOUND, at


def test_padding_tokens_leave_the_state_as_it_is():
    """beta = 0 and log_decay = 0 is the no-op that the model pads rows with: exact, not rounded."""
    query, key, value, _, beta, state = make(tokens=70)
    nothing = torch.zeros_like(beta)
    _, after = portable.gated_delta_prefill(query, key, value, nothing, nothing, state)
    assert torch.equal(after, state)
    at = (x[:, 0] for x in (query, key, value, nothing, nothing))
    assert torch.equal(portable.gated_delta_step(*at, state)[1], state)


def test_inputs_are_left_alone():
    inputs = make(tokens=70)
    copies = [x.clone() for x in inputs]
    portable.gated_delta_prefill(*inputs)
    portable.gated_delta_step(*(x[:, 0] for x in inputs[:5]), inputs[5])
    assert all(torch.equal(x, y) for x, y in zip(inputs, copies, strict=True))


def test_bfloat16_inputs_are_computed_in_float32():
    """q, k, v in bfloat16 cost only their own rounding: state and arithmetic stay fp32."""
    inputs = make(tokens=129, cosine=0.8, decay="slight")
    low = (*(x.bfloat16() for x in inputs[:3]), *inputs[3:])
    out, state = portable.gated_delta_prefill(*low)
    truth_out, truth_state = exact(*low)
    assert state.dtype == torch.float32
    assert relative_error(state, truth_state) <= BOUND
    assert relative_error(out.float(), truth_out) <= (
        BOUND if out.dtype == torch.float32 else 2**-8
    )


@pytest.mark.parametrize("decay", ["none", "mixed", "strong", "spiky"])
@pytest.mark.parametrize("cosine", [0.0, 0.8])
def test_gradients(cosine, decay):
    """d(loss)/d(every input) against autograd through the fp64 loop, finite at -90 as well."""
    inputs = make(tokens=70, cosine=cosine, decay=decay, batch=1)
    weights = torch.randn(1, 70, 4, 16), torch.randn(1, 4, 32, 16)

    def gradients(function, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        results = function(*leaves)
        loss = sum((r * w.to(dtype)).sum() for r, w in zip(results, weights, strict=True))
        return torch.autograd.grad(loss, leaves)

    ours = gradients(portable.gated_delta_prefill, torch.float32)
    truth = gradients(loop, torch.float64)
    names = ("query", "key", "value", "log_decay", "beta", "state")
    for name, mine, expected in zip(names, ours, truth, strict=True):
        assert relative_error(mine, expected) <= 10 * BOUND, name
