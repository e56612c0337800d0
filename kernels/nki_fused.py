"""Any number of chunks of the gated delta rule as one NKI kernel: the prefill.

The state stays on chip from the first chunk to the last. The stages of one chunk (nki_delta,
nki_inverse, nki_state) form a chain that would leave every engine idle most of the time, so several
are in flight: while one chunk's inverse is merged, level by level, the state passes through an
earlier one.
"""

import nki
import nki.language as nl

from .nki_delta import load, make_decays, make_gates, make_systems, recall, turn, weigh
from .nki_inverse import (
    LANES,
    apply_factor,
    find_factor,
    make_constants,
    make_factors,
    make_inverse,
)
from .nki_state import (
    attend,
    carry,
    copy_state,
    correct,
    decay_state,
    load_state,
    read_state,
    store,
    store_state,
)
from .nki_tiles import cut, make_plan

CHUNK = 128
SLOTS = 7  # of the pipeline, at least one per merge
# Chunks times value heads of one call on one core: they unroll to about 40,000 instructions, and 48
# layers of them to under half of the five million that the compiler takes. Callers loop over more.
MOST = 1024
EXACT_LANES = 6  # of a block in float32: with few lanes per key head, eight do not fit SBUF


@nki.jit
def gated_delta_prefill(
    query, key, value, log_decay, beta, state, exact=True, gpsimd=True, float16=True
):
    """The delta rule over T tokens, T a multiple of 128; chunks x value heads up to 1024 per core.

    Args:
        query, key: [B, T, Hk, Dk] float32 or bfloat16, L2-normalised, queries scaled by Dk^-1/2.
        value: [B, T, Hv, Dv], float32 or bfloat16; value head h reads key head h // (Hv / Hk).
        log_decay, beta: [B, T, Hv] float32; log_decay at most 0. Tokens where both are 0 keep the
            state bit for bit.
        state: [B, Hv, Dk, Dv] float32.
        exact: static. True multiplies in float32. False rounds the operands of most products to
            16 bits, for a quarter of TensorE's time in them; sums, decays and state stay float32.
        gpsimd: static. True gives GpSimd the elementwise work that VectorE and ScalarE have no time
            for; False gives it to VectorE. Masks are GpSimd's in both: no other engine makes them.
        float16: static. Where `exact` is False, True rounds operands that are bounded by 1 to
            float16; False makes every 16-bit operand bfloat16, for less accurate results.

    Returns:
        Output [B, T, Hv, Dv] of the value's dtype, and the new state, float32.
    """
    assert key.shape[1] % CHUNK == 0, "the number of tokens must be a multiple of 128"
    return delta_rule(query, key, value, log_decay, beta, state, CHUNK, exact, gpsimd, float16)


def delta_rule(query, key, value, log_decay, beta, state, chunk, exact, gpsimd, float16):
    """Outputs and state for any number of tokens; zeros fill the last chunk up, on chip."""
    lanes = LANES
    if exact and value.shape[2] // key.shape[2] <= EXACT_LANES:
        lanes = EXACT_LANES
    layout = cut(key.shape, value.shape, lanes, True)
    plan = make_plan(chunk, exact, gpsimd, float16)
    blocks = layout["row_blocks"] * layout["head_blocks"]
    chunks = (layout["tokens"] + chunk - 1) // chunk
    assert blocks * layout["lanes"] * chunks <= MOST, "at most 1024 chunks x value heads per call"
    inputs = {"query": query, "key": key, "value": value, "log_decay": log_decay, "beta": beta}
    out = nl.ndarray(value.shape, dtype=value.dtype, buffer=nl.shared_hbm)
    new_state = nl.ndarray(state.shape, dtype=nl.float32, buffer=nl.shared_hbm)
    constants = make_constants(plan)
    factors = []
    for _ in range(min(2, blocks * chunks)):
        factors.append(make_factors(layout, plan, constants))
    # Blocks run in pairs, so that two neighbours in the sequence of work are independent.
    for first in range(0, blocks, 2):
        count = min(2, blocks - first)
        run(layout, plan, first, count, constants, factors, inputs, state, out, new_state)
    return out, new_state


def run(layout, plan, first, count, constants, factors, inputs, state, out, new_state):
    """One or two blocks of lanes from their first to their last chunk.

    A step is one chunk of one block; steps go in groups of two. Four groups are in flight: one is
    loaded, one prepared and one merged while the state passes through the oldest. Engines take
    their instructions in order, so each slot of the pipeline has some work of every group.
    """
    size = plan["chunk"]
    steps = (layout["tokens"] + size - 1) // size * count
    states = []
    operands = []
    # What the stages leave for later ones, by step.
    tiles = []
    turned = []
    decays = []
    gates = []
    systems = []
    attentions = []
    inverses = []
    inverses_t = []
    recalled = []
    decayed = []
    updates = []
    carried = []
    for tick in range((steps + 1) // 2 + 3):
        for slot in range(SLOTS):
            for step in steps_of(tick, steps):
                if slot == 0:
                    token = step // count * size
                    tiles.append(load(layout, plan, first + step % count, token, inputs))
            if tick == 0 and slot == 1:
                for block in range(count):
                    states.append(load_state(layout, first + block, state))
                    operands.append(copy_state(layout, plan, states[block]))
            for step in steps_of(tick - 2, steps):
                if slot < plan["levels"]:
                    find_factor(
                        layout,
                        plan,
                        slot,
                        constants,
                        factors[step % 2],
                        systems[step],
                        inverses[step],
                    )
            for step in steps_of(tick - 3, steps):
                block = step % count
                if slot == 0:
                    recalled.append(recall(layout, plan, gates[step]["reader"], inverses_t[step]))
                # The second step of a group may be the next chunk of the same block.
                turn_slot = slot - 3 * (step % 2)
                if turn_slot == 0:
                    decayed.append(decay_state(layout, plan, gates[step]["across"], states[block]))
                if turn_slot == 1:
                    updates.append(
                        correct(
                            layout,
                            plan,
                            inverses_t[step],
                            tiles[step]["value"],
                            recalled[step],
                            operands[block],
                        )
                    )
                    carried.append(
                        read_state(layout, plan, turned[step], gates[step], operands[block])
                    )
                if turn_slot == 2:
                    carry(
                        layout, gates[step]["writer"], updates[step], decayed[step], states[block]
                    )
                    operands[block] = copy_state(layout, plan, states[block])
                if turn_slot == 3:
                    result = attend(
                        layout, plan, attentions[step], updates[step], carried[step], out.dtype
                    )
                    store(layout, plan, first + block, step // count * size, result, out)
            for step in steps_of(tick - 2, steps):
                if slot < plan["levels"]:
                    apply_factor(
                        layout,
                        plan,
                        slot,
                        constants,
                        factors[step % 2],
                        inverses[step],
                        inverses_t[step],
                    )
            for step in steps_of(tick - 1, steps):
                second = step % 2
                if slot == second:
                    decays.append(make_decays(layout, plan, constants, tiles[step]))
                if slot == 1 + second:
                    weigh(layout, plan, decays[step], tiles[step]["beta"])
                if slot == 2:
                    turned.append(turn(layout, plan, constants, tiles[step]))
                if slot == 3 + second:
                    system, attention = make_systems(layout, plan, turned[step], decays[step])
                    systems.append(system)
                    attentions.append(attention)
                if slot == 4:
                    inverses.append(make_inverse(layout, plan, constants, 1))
                    inverses_t.append(make_inverse(layout, plan, constants, 0))
                if slot == 5 + second:
                    gates.append(make_gates(layout, plan, constants, tiles[step]))
    for block in range(count):
        store_state(layout, first + block, states[block], new_state)


def steps_of(group, steps):
    """The steps of a group; none before the first group and after the last."""
    if group < 0:
        return range(0)
    return range(2 * group, min(2 * group + 2, steps))
