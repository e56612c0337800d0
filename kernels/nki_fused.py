"""Any number of chunks of the gated delta rule as one NKI kernel: the prefill.

The state stays on chip from the first chunk to the last. The stages of one chunk (see nki_delta)
form a chain that would leave every engine idle most of the time, so two are in flight: while one
chunk's inverse is merged, level by level, the state passes through the chunk before it.
"""

import nki
import nki.isa as nisa
import nki.language as nl

from .nki_delta import (
    attend,
    carry,
    copy_state,
    correct,
    load,
    load_state,
    make_plan,
    prepare,
    read_state,
    recall,
    store,
)
from .nki_inverse import LANES, make_constants, make_factors, merge
from .nki_tiles import cut, state_offset, state_pattern

CHUNK = 128


@nki.jit
def gated_delta_prefill(query, key, value, log_decay, beta, state, exact=True):
    """The delta rule over T tokens, T a multiple of 128.

    Args:
        query, key: [B, T, Hk, Dk] float32 or bfloat16, L2-normalised, queries scaled by Dk^-1/2.
        value: [B, T, Hv, Dv], float32 or bfloat16; value head h reads key head h // (Hv / Hk).
        log_decay, beta: [B, T, Hv] float32; log_decay at most 0. Tokens where both are 0 keep the
            state bit for bit.
        state: [B, Hv, Dk, Dv] float32.
        exact: static. True multiplies in float32. False rounds the operands of most products to
            16 bits, for a quarter of TensorE's time in them; sums, decays and state stay float32.

    Returns:
        Output [B, T, Hv, Dv] of the value's dtype, and the new state, float32.
    """
    assert key.shape[1] % CHUNK == 0, "the number of tokens must be a multiple of 128"
    return delta_rule(query, key, value, log_decay, beta, state, CHUNK, exact)


def delta_rule(query, key, value, log_decay, beta, state, chunk, exact):
    """Outputs and state for any number of tokens; zeros fill the last chunk up, on chip."""
    layout = cut(key.shape, value.shape, LANES)
    plan = make_plan(chunk, exact)
    inputs = {"query": query, "key": key, "value": value, "log_decay": log_decay, "beta": beta}
    out = nl.ndarray(value.shape, dtype=value.dtype, buffer=nl.shared_hbm)
    new_state = nl.ndarray(state.shape, dtype=nl.float32, buffer=nl.shared_hbm)
    constants = make_constants(plan)
    factors = []
    for _ in range(2):
        factors.append(make_factors(layout, plan, constants))
    # Blocks run in pairs, so that two neighbours in the sequence of work are independent.
    blocks = layout["row_blocks"] * layout["head_blocks"]
    for first in range(0, blocks, 2):
        count = min(2, blocks - first)
        run(layout, plan, first, count, constants, factors, inputs, state, out, new_state)
    return out, new_state


def run(layout, plan, first, count, constants, factors, inputs, state, out, new_state):
    """One or two blocks of lanes from their first to their last chunk."""
    states = []
    operands = []
    for block in range(count):
        states.append(load_state(layout, first + block, state))
        operands.append(copy_state(layout, plan, states[block]))
    tokens = layout["tokens"]
    size = plan["chunk"]
    steps = (tokens + size - 1) // size * count
    work = []
    for step in range(steps + 1):
        # One chunk is merged while the state advances through the one before.
        if step < steps:
            token = step // count * size
            tiles = load(layout, plan, first + step % count, token, inputs)
            work.append(prepare(layout, plan, constants, tiles))
        for level in range(plan["levels"]):
            if step < steps:
                merge(layout, plan, level, constants, factors[step % 2], work[step])
            if step > 0:
                block = (step - 1) % count
                previous = work[step - 1]
                if level == 0:
                    recalled = recall(layout, plan, previous)
                    update = correct(layout, plan, previous, recalled, operands[block])
                if level == 1:
                    carried = read_state(layout, plan, previous, operands[block])
                if level == 2:
                    carry(layout, plan, previous, update, states[block])
                    operands[block] = copy_state(layout, plan, states[block])
                if level == 3:
                    result = attend(layout, plan, previous, update, carried, out.dtype)
                    token = (step - 1) // count * size
                    store(layout, plan, first + block, token, result, out)
    for block in range(count):
        target = new_state.ap(
            pattern=state_pattern(layout), offset=state_offset(layout, first + block)
        )
        nisa.dma_copy(dst=target, src=states[block])
