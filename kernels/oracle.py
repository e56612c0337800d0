"""An independent oracle of the gated delta rule, and inputs that are hard for it.

`delta_rule` is the definition in float64, one token after another: no chunks, no inverse, none of
the kernels' algebra. `inputs` draws keys around a shared mean, as real embeddings have it: random
keys alone hide every instability of the chunked form.
"""

from typing import NamedTuple

import numpy as np


class Inputs(NamedTuple):
    """float32 arrays with a token axis, in the order that the kernels take them."""

    query: np.ndarray  # [B, T, Hk, Dk]
    key: np.ndarray  # [B, T, Hk, Dk]
    value: np.ndarray  # [B, T, Hv, Dv]
    log_decay: np.ndarray  # [B, T, Hv]
    beta: np.ndarray  # [B, T, Hv]
    state: np.ndarray  # [B, Hv, Dk, Dv]


def delta_rule(query, key, value, log_decay, beta, state, dtype=np.float64):
    """Outputs [B, T, Hv, Dv] and the final state [B, Hv, Dk, Dv], of `dtype`.

    Shapes as in `Inputs`; value head h reads key head h // (Hv / Hk).
    """
    query, key, value, log_decay, beta, state = (
        np.asarray(x, dtype) for x in (query, key, value, log_decay, beta, state)
    )
    repeats = value.shape[2] // key.shape[2]
    query, key = np.repeat(query, repeats, axis=2), np.repeat(key, repeats, axis=2)
    state = state.copy()
    out = np.empty(value.shape, dtype)
    for t in range(key.shape[1]):
        state *= np.exp(log_decay[:, t])[..., None, None]
        recalled = np.einsum("bhk,bhkv->bhv", key[:, t], state)
        delta = beta[:, t][..., None] * (value[:, t] - recalled)
        state += key[:, t][..., :, None] * delta[..., None, :]
        out[:, t] = np.einsum("bhk,bhkv->bhv", query[:, t], state)
    return out, state


DECAYS = {
    # name: log decays drawn from a generator, with a size
    "none": lambda rng, size: -1e-4 * rng.random(size),
    "mixed": lambda rng, size: np.where(
        rng.random(size) < 0.05, -50.0, -np.exp(rng.uniform(-9, 1, size))
    ),
    "strong": lambda rng, size: np.full(size, -50.0),
}


def inputs(
    seed=0,
    batch=1,
    tokens=128,
    key_heads=1,
    group=1,
    key_size=128,
    value_size=128,
    cosine=0.0,
    beta=(0.9, 1.0),
    decay="none",
    state_scale=1.0,
):
    """`Inputs` with keys whose mean pairwise cosine is `cosine`.

    Args:
        group: value heads per key head.
        beta: one value, or a range to draw from.
        decay: a key of `DECAYS`.
        state_scale: standard deviation of the initial state's entries; 0 gives zeros.
    """
    rng = np.random.default_rng(seed)
    heads = key_heads * group

    def directions(mean):
        noise = rng.standard_normal((batch, tokens, key_heads, key_size))
        noise -= (noise * mean).sum(-1, keepdims=True) * mean
        noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
        return np.sqrt(cosine) * mean + np.sqrt(1 - cosine) * noise

    mean = rng.standard_normal((batch, 1, key_heads, key_size))
    mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
    key = directions(mean)
    query = directions(mean) * key_size**-0.5
    value = rng.standard_normal((batch, tokens, heads, value_size))
    size = (batch, tokens, heads)
    beta = rng.uniform(*beta, size) if isinstance(beta, tuple) else np.full(size, beta)
    state = state_scale * rng.standard_normal((batch, heads, key_size, value_size))
    arrays = (query, key, value, DECAYS[decay](rng, size), beta, state)
    return Inputs(*(np.asarray(x, np.float32) for x in arrays))


def bfloat16(values):
    """float32 values rounded to the nearest bfloat16 (ties to even)."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    bits = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def relative_error(actual, expected):
    """Largest absolute difference over the largest expected magnitude (1e-30 at least)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        raise AssertionError(f"{actual.shape} for {expected.shape}, or not finite")
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))
