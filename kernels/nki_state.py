"""The stages of the delta rule that the state passes through, on one block of lanes.

The state of a block is one tile [Dk, lanes x columns], float32, from the first token to the last.
nki_delta has the equations, and what can be made before the state is there.
"""

import nki.isa as nisa
import nki.language as nl

from .nki_tiles import (
    BANK,
    part,
    psum_bank,
    sbuf,
    state_offset,
    state_pattern,
    token_offset,
    token_pattern,
)


def load_state(layout, block, state):
    """The state of a block, [Dk, lanes x columns] float32."""
    tile = sbuf(layout["key_size"], layout["lanes"] * layout["columns"], nl.float32)
    source = state.ap(pattern=state_pattern(layout), offset=state_offset(layout, block))
    nisa.dma_copy(dst=tile, src=source)
    return tile


def copy_state(layout, plan, state):
    """The state as matmuls read it: itself, or its bfloat16 copy."""
    if plan["exact"]:
        return state
    tile = sbuf(layout["key_size"], layout["lanes"] * layout["columns"], plan["unbounded"])
    nisa.tensor_copy(dst=tile, src=state, engine=nisa.engine.scalar)
    return tile


def store_state(layout, block, tile, state):
    """The state of a block to HBM."""
    target = state.ap(pattern=state_pattern(layout), offset=state_offset(layout, block))
    nisa.dma_copy(dst=target, src=tile)


def correct(layout, plan, inverse_t, value, recalled, operand):
    """U = T V - (T exp(G) K) S of every lane; `operand` is the state as matmuls read it."""
    chunk = plan["chunk"]
    lanes = layout["lanes"]
    columns = layout["columns"]
    per_bank = BANK // columns
    update = sbuf(chunk, lanes * columns, nl.float32)
    for first in range(0, lanes, per_bank):
        count = min(per_bank, lanes - first)
        bank = psum_bank()
        for slot in range(count):
            nisa.nc_matmul(
                dst=bank[0:chunk, slot * columns : (slot + 1) * columns],
                stationary=part(inverse_t, first + slot, chunk),
                moving=part(value, first + slot, columns),
                accumulate=False,
            )
            nisa.nc_matmul(
                dst=bank[0:chunk, slot * columns : (slot + 1) * columns],
                stationary=part(recalled, first + slot, chunk),
                moving=part(operand, first + slot, columns),
                accumulate=True,
            )
        nisa.tensor_copy(
            dst=update[:, first * columns : (first + count) * columns],
            src=bank[0:chunk, 0 : count * columns],
            engine=nisa.engine.scalar,
        )
    return update


def read_state(layout, plan, turned, gates, operand):
    """exp(G) Q S of every lane: the outputs' part that comes from the state before the chunk."""
    chunk = plan["chunk"]
    lanes = layout["lanes"]
    columns = layout["columns"]
    group = layout["group"]
    per_bank = BANK // columns
    carried = sbuf(chunk, lanes * columns, nl.float32)
    for first in range(0, lanes, per_bank):
        count = min(per_bank, lanes - first)
        bank = psum_bank()
        for slot in range(count):
            lane = first + slot
            # One product for the neighbours that share a key head: their queries are one operand.
            if slot == 0 or lane % group == 0:
                shared = min(group - lane % group, count - slot)
                nisa.nc_matmul(
                    dst=bank[0:chunk, slot * columns : (slot + shared) * columns],
                    stationary=part(turned, 2 * (lane // group) + 1, chunk),
                    moving=operand[:, lane * columns : (lane + shared) * columns],
                    accumulate=False,
                )
            nisa.activation(
                dst=part(carried, lane, columns),
                op=nl.copy,
                data=bank[0:chunk, slot * columns : (slot + 1) * columns],
                scale=gates["from_start"][:, lane : lane + 1],
            )
    return carried


def decay_state(layout, plan, across, state):
    """exp(G_end) S of every lane."""
    lanes = layout["lanes"]
    columns = layout["columns"]
    key_size = layout["key_size"]
    every = [[lanes * columns, key_size], [columns, lanes], [1, columns]]
    decayed = sbuf(key_size, lanes * columns, nl.float32)
    nisa.tensor_tensor(
        dst=decayed.ap(pattern=every),
        data1=state.ap(pattern=every),
        data2=across.ap(pattern=[[lanes, key_size], [1, lanes], [0, columns]]),
        op=nl.multiply,
        engine=plan["spare"],
    )
    return decayed


def carry(layout, writer, update, decayed, state):
    """S <- exp(G_end) S + (beta exp(D[end]) K)^T U of every lane, in place."""
    lanes = layout["lanes"]
    columns = layout["columns"]
    key_size = layout["key_size"]
    per_bank = BANK // columns
    for first in range(0, lanes, per_bank):
        count = min(per_bank, lanes - first)
        bank = psum_bank()
        for slot in range(count):
            nisa.nc_matmul(
                dst=bank[0:key_size, slot * columns : (slot + 1) * columns],
                stationary=part(writer, first + slot, key_size),
                moving=part(update, first + slot, columns),
                accumulate=False,
            )
        nisa.tensor_tensor(
            dst=state[:, first * columns : (first + count) * columns],
            data1=bank[0:key_size, 0 : count * columns],
            data2=decayed[:, first * columns : (first + count) * columns],
            op=nl.add,
            engine=nisa.engine.vector,
        )


def attend(layout, plan, attention, update, carried, dtype):
    """O = exp(G) Q S + W U of every lane."""
    chunk = plan["chunk"]
    lanes = layout["lanes"]
    columns = layout["columns"]
    per_bank = BANK // columns
    result = sbuf(chunk, lanes * columns, dtype)
    for first in range(0, lanes, per_bank):
        count = min(per_bank, lanes - first)
        bank = psum_bank()
        for slot in range(count):
            nisa.nc_matmul(
                dst=bank[0:chunk, slot * columns : (slot + 1) * columns],
                stationary=part(attention, first + slot, chunk),
                moving=part(update, first + slot, columns),
                accumulate=False,
            )
        nisa.tensor_tensor(
            dst=result[:, first * columns : (first + count) * columns],
            data1=bank[0:chunk, 0 : count * columns],
            data2=carried[:, first * columns : (first + count) * columns],
            op=nl.add,
            engine=nisa.engine.vector,
        )
    return result


def store(layout, plan, block, token, result, out):
    """Outputs of the chunk that starts at `token` to HBM."""
    count = min(plan["chunk"], layout["tokens"] - token)
    heads = layout["value_heads"]
    size = layout["value_size"]
    target = out.ap(
        pattern=token_pattern(layout, heads, size, layout["columns"], count),
        offset=token_offset(layout, block, token, heads, size, layout["first_column"]),
    )
    nisa.dma_copy(dst=target, src=result[0:count, :])
