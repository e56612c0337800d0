"""Values inside layers are those inside transformers' modules, seen there by its own hooks.

Tolerance: 1e-4 at values near 1, as in test_parity.
"""

import pytest
import torch
from torch.nn import functional as F

import qwen35

CASE = "value_heads_x2_tied"  # DeltaNet and attention in turn


def close(ours, theirs, tolerance=1e-4):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def seen(reference):
    """What transformers' modules were given and gave, by their names; and its outputs."""
    model, inside = reference(CASE).model, {}

    def keep(name):
        def hook(module, arguments, result):
            inside[name] = (arguments, result[0] if isinstance(result, tuple) else result)

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    tokens = reference(CASE).tokens(2, 20)
    with torch.no_grad():
        out = model(tokens, use_cache=False, output_hidden_states=True, output_attentions=True)
    for handle in handles:
        handle.remove()
    return tokens, inside, out


def everything(params, tokens, **options):
    state = qwen35.init_state(params, batch=tokens.shape[0], capacity=24)
    return qwen35.observe(params, state, tokens, **options)


def test_residuals_and_what_halves_add(load, seen):
    tokens, inside, out = seen
    found = everything(load(CASE), tokens, what=("residual", "mixer", "mlp"))
    for layer in range(4):
        close(found.values["residual"][layer], out.hidden_states[layer])
        mixer = "self_attn" if layer % 2 else "linear_attn"
        close(found.values["mixer"][layer], inside[f"model.layers.{layer}.{mixer}"][1])
        close(found.values["mlp"][layer], inside[f"model.layers.{layer}.mlp"][1])
    close(found.hidden, out.hidden_states[-1])


def test_gates_of_deltanet(load, seen):
    tokens, inside, _ = seen
    found = everything(load(CASE), tokens, what=("beta", "log_decay", "gate"))
    assert all(set(values) >= {0, 2} for values in found.values.values())
    assert set(found.values["beta"]) == {0, 2}  # an attention layer has none
    for layer in (0, 2):
        mixer = f"model.layers.{layer}.linear_attn"
        close(found.values["beta"][layer], inside[mixer + ".in_proj_b"][1].sigmoid())
        weights = load(CASE).layers[layer]
        step = F.softplus(inside[mixer + ".in_proj_a"][1] + weights.dt_bias)
        close(found.values["log_decay"][layer], -weights.a_log.exp() * step)
        close(found.values["gate"][layer].flatten(2), inside[mixer + ".in_proj_z"][1])


def test_attention_is_that_of_transformers(load, seen):
    """Its weights, and that they read the values."""
    tokens, inside, out = seen
    found = everything(load(CASE), tokens, what=("weights", "value", "read"))
    attentions = [each for each in out.attentions if each is not None]
    assert set(found.values["weights"]) == {1, 3} and len(attentions) == 2
    for layer, theirs in zip((1, 3), attentions, strict=True):
        weights = found.values["weights"][layer]
        close(weights[..., :20], theirs)
        assert (weights[..., 20:] == 0).all()
        value = found.values["value"][layer].repeat_interleave(2, dim=2)  # two queries each
        read = torch.einsum("bhts,bshd->bthd", weights[..., :20], value)
        close(found.values["read"][layer], read, 1e-5)
        close(
            found.values["value"][layer].flatten(2),
            inside[f"model.layers.{layer}.self_attn.v_proj"][1],
        )


@pytest.mark.parametrize("forms", ["plain", "xla_cpu"])
def test_compiled_and_carried_along(load, forms):
    """The choice is static; a state may come from another step, and goes on into the next."""
    params = load(CASE, "xla").with_runtime(forms=forms)
    eager = load(CASE)
    tokens = torch.arange(12)[None]
    whole = everything(eager, tokens, what=("beta", "weights"), layers=(2, 3))
    assert set(whole.values["beta"]) == {2} and set(whole.values["weights"]) == {3}
    observe = qwen35.jit(qwen35.observe)
    state = qwen35.init_state(params, batch=1, capacity=24)
    parts = []
    for start in (0, 6):
        piece = qwen35.device_put(tokens[:, start : start + 6].contiguous(), "xla")
        found = observe(params, state, piece, what=("beta", "weights"), layers=(2, 3))
        state = found.state
        parts.append(qwen35.device_put(found.values, "cpu"))
    assert observe.compile_count == 1
    for name, layer, axis in (("beta", 2, 1), ("weights", 3, 2)):
        joined = torch.cat([part[name][layer] for part in parts], axis)
        close(joined, whole.values[name][layer])


def test_what_can_not_be_seen_is_refused(load):
    tokens = torch.tensor([[1, 2]])
    for what in (("nothing",), "beta", (3,)):
        with pytest.raises(ValueError, match="what must be some of residual, mixer"):
            everything(load(CASE), tokens, what=what)
    with pytest.raises(ValueError, match="layers must be an integer from 0 to 3, not 4"):
        everything(load(CASE), tokens, layers=(4,))
