"""One token of the gated delta rule as an NKI kernel: the decode step.

Per lane (row and value head), with the decay a and the state S [Dk, Dv]:

    d  = v - a k^T S                 a correction, before beta
    o  = a q^T S + beta (q . k) d
    S' = a S + (beta k) d^T

which is the rule with the new state substituted into the output, so that S is read from on-chip
memory once. The products with S take S itself as the stationary operand and two columns (k and q)
as the moving one: 64 TensorE passes instead of 128 per lane. With 16-bit operands the products read
a bfloat16 copy of S, and the correction is rounded to bfloat16. The state's way through memory
(2 x 64 KiB per lane for 128 x 128) soon takes longer than the arithmetic, so this saves less than
in a prefill.

The decay comes as a factor, not as its logarithm: the state is multiplied by it once a token, so
that an error of ScalarE's exp, which is a table's, would add up over as many tokens as the state
remembers. `binding.decay_of` makes it.
"""

import nki
import nki.isa as nisa
import nki.language as nl

from .nki_state import copy_state, load_state, store_state
from .nki_tiles import (
    BANK,
    convert,
    cut,
    make_plan,
    part,
    psum_bank,
    sbuf,
    select,
    token_offset,
    token_pattern,
)

LANES = 32  # of a block: its state takes 16 KiB per partition


@nki.jit
def gated_delta_step(query, key, value, decay, beta, state, exact=True, gpsimd=True, float16=True):
    """One step for every row and head.

    Args:
        query, key: [B, Hk, Dk] float32 or bfloat16, L2-normalised, queries scaled by Dk^-1/2.
        value: [B, Hv, Dv], float32 or bfloat16; value head h reads key head h // (Hv / Hk).
        decay, beta: [B, Hv] float32; decay is exp(log_decay), 0 to 1. A decay of 1 with a beta of 0
            keeps the state bit for bit.
        state: [B, Hv, Dk, Dv] float32.
        exact, gpsimd, float16: static, as in `nki_fused.gated_delta_prefill`.

    Returns:
        Output [B, Hv, Dv] of the value's dtype, and the new state, float32.
    """
    rows, key_heads, key_size = key.shape
    value_heads = value.shape[1]
    value_size = value.shape[2]
    layout = cut((rows, 1, key_heads, key_size), (rows, 1, value_heads, value_size), LANES, False)
    plan = make_plan(1, exact, gpsimd, float16)
    out = nl.ndarray(value.shape, dtype=value.dtype, buffer=nl.shared_hbm)
    new_state = nl.ndarray(state.shape, dtype=nl.float32, buffer=nl.shared_hbm)
    constants = make_constants(layout, plan)
    blocks = layout["row_blocks"] * layout["head_blocks"]
    ready = []
    operands = []
    for block in range(blocks + 1):
        # A block is loaded and prepared while the state passes through the one before it.
        if block < blocks:
            inputs = load(layout, plan, block, query, key, value, decay, beta, state)
            ready.append(prepare(layout, plan, constants, inputs))
        if block > 0:
            step(
                layout,
                plan,
                block - 1,
                constants,
                ready[block - 1],
                operands[block - 1],
                out,
                new_state,
            )
        if block < blocks:
            # Here, so that ScalarE does not wait for this block's state before that one's update.
            operands.append(copy_state(layout, plan, ready[block]["state"]))
    return out, new_state


def make_constants(layout, plan):
    """The identity, and which lanes are a pair's."""
    lanes = layout["lanes"]
    pairs = layout["pairs"]
    group = layout["group"]
    ones = sbuf(128, 128, nl.float32)
    nisa.memset(dst=ones, value=1.0, engine=plan["spare"])
    identity = sbuf(128, 128, nl.float32)
    select(identity, ones, [[-1, 128]], 0, 1, nl.equal, 0.0)
    owner = sbuf(pairs, lanes, nl.float32)  # 1 where the lane is one of the pair's
    inside = [[-1, lanes]]
    select(owner, ones[0:pairs, 0:lanes], inside, group - 1, group, nl.greater_equal, 0.0)
    inside = [[1, lanes]]
    select(owner, owner, inside, 0, -group, nl.greater_equal, 0.0)
    if not plan["exact"]:
        owner = convert(owner, pairs, lanes, plan["bounded"])
    return {"identity": identity, "owner": owner}


def load(layout, plan, block, query, key, value, decay, beta, state):
    """The block's inputs, a lane (of keys and queries: a pair) per partition; the state apart."""
    lanes = layout["lanes"]
    pairs = layout["pairs"]
    key_size = layout["key_size"]
    columns = layout["columns"]
    key_heads = layout["key_heads"]
    value_heads = layout["value_heads"]

    both = sbuf(pairs, 2 * key_size, plan["bounded"])
    pattern = token_pattern(layout, key_heads, key_size, key_size, 1)
    offset = token_offset(layout, block, 0, key_heads, key_size, 0)
    for side, source in ((0, key), (1, query)):
        nisa.dma_copy(
            dst=part(both, side, key_size),
            src=source.ap(pattern=pattern, offset=offset),
            dge_mode=nisa.dge_mode.none,
        )

    values = sbuf(lanes, columns, nl.float32)
    pattern = token_pattern(layout, value_heads, layout["value_size"], columns, 1)
    offset = token_offset(
        layout, block, 0, value_heads, layout["value_size"], layout["first_column"]
    )
    nisa.dma_copy(dst=values, src=value.ap(pattern=pattern, offset=offset))

    gates = sbuf(lanes, 2, nl.float32)
    spread = sbuf(key_size, lanes, nl.float32)  # every partition holds all lanes' decays
    pattern = token_pattern(layout, value_heads, 1, 1, 1)
    offset = token_offset(layout, block, 0, value_heads, 1, 0)
    nisa.dma_copy(dst=gates[:, 0:1], src=decay.ap(pattern=pattern, offset=offset))
    nisa.dma_copy(dst=gates[:, 1:2], src=beta.ap(pattern=pattern, offset=offset))
    pattern = [[0, key_size], pattern[1], pattern[2]]
    nisa.dma_copy(dst=spread, src=decay.ap(pattern=pattern, offset=offset))
    return {
        "both": both,
        "values": values,
        "gates": gates,
        "spread": spread,
        "state": load_state(layout, block, state),
    }


def prepare(layout, plan, constants, inputs):
    """What does not need the state: columns for the products, selectors for the update."""
    lanes = layout["lanes"]
    key_size = layout["key_size"]
    beta = inputs["gates"][:, 1:2]

    # Keys and queries of each lane's own pair.
    bank = psum_bank()
    nisa.nc_matmul(
        dst=bank[0:lanes, 0 : 2 * key_size],
        stationary=constants["owner"],
        moving=inputs["both"],
        accumulate=False,
    )
    both = sbuf(lanes, 2 * key_size, nl.float32)
    nisa.tensor_copy(dst=both, src=bank[0:lanes, 0 : 2 * key_size], engine=nisa.engine.vector)
    keys = both[:, 0:key_size]
    queries = both[:, key_size : 2 * key_size]

    # beta k of one lane, zero in the others' partitions: selects that lane's correction.
    weighted = sbuf(lanes, key_size, nl.float32)
    nisa.activation(dst=weighted, op=nl.copy, data=keys, scale=beta)
    selector = sbuf(lanes, lanes * key_size, plan["bounded"])
    nisa.tensor_tensor(
        dst=selector.ap(pattern=[[lanes * key_size, lanes], [key_size, lanes], [1, key_size]]),
        data1=weighted.ap(pattern=[[key_size, lanes], [0, lanes], [1, key_size]]),
        data2=constants["identity"].ap(pattern=[[128, lanes], [1, lanes], [0, key_size]]),
        op=nl.multiply,
        engine=plan["spare"],
    )

    # Columns k and q of every lane: [k | q], lanes side by side in each half.
    bank = psum_bank()
    for side in range(2):
        nisa.nc_transpose(
            dst=bank[0:key_size, side * lanes : (side + 1) * lanes],
            data=part(both, side, key_size),
            engine=nisa.engine.tensor,
        )
    turned = sbuf(key_size, 2 * lanes, plan["bounded"])
    nisa.tensor_copy(dst=turned, src=bank[0:key_size, 0 : 2 * lanes], engine=nisa.engine.vector)

    # beta (q . k)
    product = sbuf(lanes, key_size, nl.float32)
    nisa.tensor_tensor(
        dst=product, data1=keys, data2=queries, op=nl.multiply, engine=nisa.engine.vector
    )
    overlap = sbuf(lanes, 1, nl.float32)
    nisa.tensor_reduce(dst=overlap, op=nl.add, data=product, axis=1)
    nisa.tensor_tensor(
        dst=overlap, data1=overlap, data2=beta, op=nl.multiply, engine=nisa.engine.vector
    )
    return {
        "state": inputs["state"],
        "values": inputs["values"],
        "decay": inputs["gates"][:, 0:1],
        "decay_spread": inputs["spread"],
        "selector": selector,
        "turned": turned,
        "overlap": overlap,
    }


def step(layout, plan, block, constants, ready, operand, out, new_state):
    """Corrections, outputs and the new state of one block, to HBM.

    `operand` is the state as matmuls read it.
    """
    lanes = layout["lanes"]
    key_size = layout["key_size"]
    columns = layout["columns"]
    state = ready["state"]

    # S^T [k q] of every lane: columns, a lane's two side by side.
    bank = psum_bank()
    for lane in range(lanes):
        nisa.nc_matmul(
            dst=bank[0:columns, 2 * lane : 2 * lane + 2],
            stationary=part(operand, lane, columns),
            moving=ready["turned"].ap(pattern=[[2 * lanes, key_size], [lanes, 2]], offset=lane),
            accumulate=False,
        )
    answers = sbuf(columns, 2 * lanes, nl.float32)  # the two apart again
    nisa.tensor_copy(
        dst=answers.ap(pattern=[[2 * lanes, columns], [1, lanes], [lanes, 2]]),
        src=bank.ap(pattern=[[BANK, columns], [2, lanes], [1, 2]]),
        engine=nisa.engine.vector,
    )
    bank = psum_bank()
    for side in range(2):
        nisa.nc_transpose(
            dst=bank[0:lanes, side * columns : (side + 1) * columns],
            data=part(answers, side, lanes),
            engine=nisa.engine.tensor,
        )

    # d = v - a k^T S. The decay comes after the products: a k could underflow in 16 bits.
    correction = sbuf(lanes, columns, plan["unbounded"])
    nisa.scalar_tensor_tensor(
        dst=correction,
        data=bank[0:lanes, 0:columns],
        op0=nl.multiply,
        operand0=ready["decay"],
        op1=nl.subtract,
        operand1=ready["values"],
        reverse1=True,
    )

    # o = a q^T S + beta (q . k) d
    recalled = sbuf(lanes, columns, nl.float32)
    nisa.activation(
        dst=recalled,
        op=nl.copy,
        data=bank[0:lanes, columns : 2 * columns],
        scale=ready["decay"],
    )
    result = sbuf(lanes, columns, out.dtype)
    nisa.scalar_tensor_tensor(
        dst=result,
        data=correction,
        op0=nl.multiply,
        operand0=ready["overlap"],
        op1=nl.add,
        operand1=recalled,
    )
    heads = layout["value_heads"]
    size = layout["value_size"]
    target = out.ap(
        pattern=token_pattern(layout, heads, size, columns, 1),
        offset=token_offset(layout, block, 0, heads, size, layout["first_column"]),
    )
    nisa.dma_copy(dst=target, src=result)

    # S' = a S + (beta k) d^T
    per_bank = BANK // columns
    for first in range(0, lanes, per_bank):
        count = min(per_bank, lanes - first)
        bank = psum_bank()
        for slot in range(count):
            lane = first + slot
            nisa.activation(
                dst=part(state, lane, columns),
                op=nl.copy,
                data=part(state, lane, columns),
                scale=ready["decay_spread"][:, lane : lane + 1],
            )
            nisa.nc_matmul(
                dst=bank[0:key_size, slot * columns : (slot + 1) * columns],
                stationary=part(ready["selector"], lane, key_size),
                moving=correction,
                accumulate=False,
            )
        nisa.tensor_tensor(
            dst=state[:, first * columns : (first + count) * columns],
            data1=bank[0:key_size, 0 : count * columns],
            data2=state[:, first * columns : (first + count) * columns],
            op=nl.add,
            engine=nisa.engine.vector,
        )
    store_state(layout, block, state, new_state)
