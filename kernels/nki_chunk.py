"""Up to 128 tokens of the gated delta rule as one NKI kernel: one chunk of a prefill."""

import nki

from .nki_fused import CHUNK, delta_rule


@nki.jit
def gated_delta_chunk(
    query, key, value, log_decay, beta, state, exact=True, gpsimd=True, float16=True
):
    """The delta rule over T tokens, T at most 128; the chunk is the next power of two, 16 at least.

    Args:
        query, key: [B, T, Hk, Dk] float32 or bfloat16, L2-normalised, queries scaled by Dk^-1/2.
        value: [B, T, Hv, Dv], float32 or bfloat16; value head h reads key head h // (Hv / Hk).
        log_decay, beta: [B, T, Hv] float32; log_decay at most 0. Tokens where both are 0 keep the
            state bit for bit.
        state: [B, Hv, Dk, Dv] float32.
        exact, gpsimd, float16: static, as in `nki_fused.gated_delta_prefill`.

    Returns:
        Output [B, T, Hv, Dv] of the value's dtype, and the new state, float32.
    """
    tokens = key.shape[1]
    assert tokens <= CHUNK, "a chunk has at most 128 tokens"
    chunk = 16
    for power in (32, 64, 128):
        if chunk < tokens:
            chunk = power
    return delta_rule(query, key, value, log_decay, beta, state, chunk, exact, gpsimd, float16)
