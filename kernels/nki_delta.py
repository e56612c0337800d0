"""The stages of the chunked delta rule on one block of lanes.

With tokens i, j of a chunk, D[i, j] the log decay summed over j+1..i, and G[i] that from the
chunk's start, per lane:

    A = I + N,   N[i, j] = beta_j exp(D[i, j]) k_i . k_j   (j < i)
    U = A^-1 (V - exp(G) K S)                    corrections, before beta
    O = exp(G) Q S + W U,   W[i, j] = beta_j exp(D[i, j]) q_i . k_j   (j <= i)
    S' = exp(G_end) S + (beta exp(D[end]) K)^T U

beta scales columns, not rows, so that one decay matrix with beta in it serves N and W. No exponent
is positive: D is summed over the tokens between, not a difference of prefix sums, which would
also cancel after a strong decay. Here is what comes before the state and can run ahead of it, but
for the inverse (nki_inverse); nki_state has what passes through the state.
"""

import nki.isa as nisa
import nki.language as nl

from .nki_tiles import (
    BANK,
    part,
    psum_bank,
    sbuf,
    select,
    token_offset,
    token_pattern,
)


def load(layout, plan, block, token, inputs):
    """The inputs of the chunk that starts at `token`; zeros, which change nothing, fill it up."""
    chunk = plan["chunk"]
    count = min(chunk, layout["tokens"] - token)
    lanes = layout["lanes"]
    pairs = layout["pairs"]
    columns = layout["columns"]
    key_heads = layout["key_heads"]
    value_heads = layout["value_heads"]
    key_size = layout["key_size"]
    value_size = layout["value_size"]
    tiles = {
        "key": sbuf(chunk, pairs * key_size, plan["bounded"]),
        "query": sbuf(chunk, pairs * key_size, plan["bounded"]),
        "value": sbuf(chunk, lanes * columns, plan["unbounded"]),
        "log_decay": sbuf(chunk, lanes, nl.float32),
        "beta": sbuf(chunk, lanes, nl.float32),
    }
    shapes = {
        "key": (key_heads, key_size, key_size, 0),
        "query": (key_heads, key_size, key_size, 0),
        "value": (value_heads, value_size, columns, layout["first_column"]),
        "log_decay": (value_heads, 1, 1, 0),
        "beta": (value_heads, 1, 1, 0),
    }
    for name in ("log_decay", "key", "query", "beta", "value"):
        heads, size, width, first = shapes[name]
        if count < chunk:
            nisa.memset(dst=tiles[name], value=0.0, engine=plan["spare"])
        source = inputs[name].ap(
            pattern=token_pattern(layout, heads, size, width, count),
            offset=token_offset(layout, block, token, heads, size, first),
        )
        # The DMA converts to the operands' dtype; only host-made descriptors may.
        nisa.dma_copy(dst=tiles[name][0:count, :], src=source, dge_mode=nisa.dge_mode.none)
    return tiles


def make_decays(layout, plan, constants, tiles):
    """exp(D[i, j]) at [j, i] of every lane, and 0 where j > i."""
    lanes = layout["lanes"]
    chunk = plan["chunk"]
    per_bank = BANK // chunk
    terms = sbuf(chunk, lanes * chunk, nl.float32)  # the log decay of token l at [l, i >= l]
    for lane in range(lanes):
        nisa.tensor_scalar(
            dst=part(terms, lane, chunk),
            data=constants["until"],
            op0=nl.multiply,
            operand0=tiles["log_decay"][:, lane : lane + 1],
            engine=nisa.engine.vector,
        )
    decays = sbuf(chunk, lanes * chunk, nl.float32)
    for first in range(0, lanes, per_bank):
        width = min(per_bank, lanes - first) * chunk
        bank = psum_bank()
        nisa.nc_matmul(
            dst=bank[0:chunk, 0:width],
            stationary=constants["after"],
            moving=terms[:, first * chunk : first * chunk + width],
            is_stationary_onezero=True,
            accumulate=False,
        )
        nisa.nc_matmul(
            dst=bank[0:chunk, 0:width],
            stationary=constants["identity_bf16"],
            moving=constants["future"][:, 0:width],
            accumulate=True,
        )
        nisa.activation(
            dst=decays[:, first * chunk : first * chunk + width],
            op=nl.exp,
            data=bank[0:chunk, 0:width],
        )
    return decays


def weigh(layout, plan, decays, beta):
    """Multiply the decays by the beta of their source token j, in place."""
    lanes = layout["lanes"]
    chunk = plan["chunk"]
    every = [[lanes * chunk, chunk], [chunk, lanes], [1, chunk]]
    nisa.tensor_tensor(
        dst=decays.ap(pattern=every),
        data1=decays.ap(pattern=every),
        data2=beta.ap(pattern=[[lanes, chunk], [1, lanes], [0, chunk]]),
        op=nl.multiply,
        engine=plan["spare"],
    )


def make_gates(layout, plan, constants, tiles):
    """exp(G) per token and exp(G_end) per lane; exp(G) K and beta exp(D[end]) K of every lane."""
    lanes = layout["lanes"]
    group = layout["group"]
    pairs = layout["pairs"]
    key_size = layout["key_size"]
    chunk = plan["chunk"]
    log_decay = tiles["log_decay"]
    bank = psum_bank()
    for side, triangle in ((0, "until"), (1, "after")):
        nisa.nc_matmul(
            dst=bank[0:chunk, side * lanes : (side + 1) * lanes],
            stationary=constants[triangle],
            moving=log_decay,
            is_stationary_onezero=True,
            accumulate=False,
        )
    gates = sbuf(chunk, 2 * lanes, nl.float32)
    nisa.activation(dst=gates, op=nl.exp, data=bank[0:chunk, 0 : 2 * lanes])
    bank = psum_bank()
    nisa.nc_matmul(
        dst=bank[0:key_size, 0:lanes],
        stationary=constants["ones"][:, 0:key_size],
        moving=log_decay,
        is_stationary_onezero=True,
        accumulate=False,
    )
    across = sbuf(key_size, lanes, nl.float32)
    nisa.activation(dst=across, op=nl.exp, data=bank[0:key_size, 0:lanes])
    weights = sbuf(chunk, lanes, nl.float32)
    nisa.tensor_tensor(
        dst=weights,
        data1=gates[:, lanes : 2 * lanes],
        data2=tiles["beta"],
        op=nl.multiply,
        engine=nisa.engine.vector,
    )
    reader = sbuf(chunk, lanes * key_size, plan["bounded"])
    writer = sbuf(chunk, lanes * key_size, nl.float32)
    own = [[lanes * key_size, chunk], [group * key_size, pairs], [key_size, group], [1, key_size]]
    shared = [[pairs * key_size, chunk], [key_size, pairs], [0, group], [1, key_size]]
    for target, gate, row in ((reader, gates, 2 * lanes), (writer, weights, lanes)):
        nisa.tensor_tensor(
            dst=target.ap(pattern=own),
            data1=tiles["key"].ap(pattern=shared),
            data2=gate.ap(pattern=[[row, chunk], [group, pairs], [1, group], [0, key_size]]),
            op=nl.multiply,
            engine=plan["spare"],
        )
    return {"from_start": gates, "across": across, "reader": reader, "writer": writer}


def turn(layout, plan, constants, tiles):
    """Transposed keys and queries, once per key head: [K_0^T | Q_0^T | K_1^T | ...]."""
    pairs = layout["pairs"]
    key_size = layout["key_size"]
    chunk = plan["chunk"]
    per_bank = BANK // chunk
    turned = sbuf(key_size, 2 * pairs * chunk, plan["bounded"])
    for first in range(0, 2 * pairs, per_bank):
        count = min(per_bank, 2 * pairs - first)
        bank = psum_bank()
        for slot in range(count):
            pair = (first + slot) // 2
            name = "key" if (first + slot) % 2 == 0 else "query"
            transpose(
                plan,
                constants,
                bank[0:key_size, slot * chunk : (slot + 1) * chunk],
                part(tiles[name], pair, key_size),
            )
        nisa.tensor_copy(
            dst=turned[:, first * chunk : (first + count) * chunk],
            src=bank[0:key_size, 0 : count * chunk],
            engine=nisa.engine.scalar,
        )
    return turned


def transpose(plan, constants, dst, data):
    """dst = data^T in a float32 bank, whatever the dtype of data."""
    if plan["exact"]:
        nisa.nc_transpose(dst=dst, data=data, engine=nisa.engine.tensor)
    else:
        nisa.nc_matmul(dst=dst, stationary=data, moving=constants["identity"], accumulate=False)


def make_systems(layout, plan, turned, decays):
    """A^T and W^T of every lane: its key head's products times its own decays."""
    lanes = layout["lanes"]
    group = layout["group"]
    chunk = plan["chunk"]
    system = sbuf(chunk, lanes * chunk, plan["bounded"])
    attention = sbuf(chunk, lanes * chunk, nl.float32)
    own = [[lanes * chunk, chunk], [chunk, group], [1, chunk]]
    for pair in range(layout["pairs"]):
        bank = psum_bank()
        nisa.nc_matmul(
            dst=bank[0:chunk, 0 : 2 * chunk],
            stationary=part(turned, 2 * pair, chunk),
            moving=part(turned, pair, 2 * chunk),
            accumulate=False,
        )
        for target, side in ((system, 0), (attention, 1)):
            nisa.tensor_tensor(
                dst=target.ap(pattern=own, offset=pair * group * chunk),
                data1=bank.ap(pattern=[[BANK, chunk], [0, group], [1, chunk]], offset=side * chunk),
                data2=decays.ap(pattern=own, offset=pair * group * chunk),
                op=nl.multiply,
                engine=nisa.engine.vector,
            )
    select(system, system, [[0, lanes], [1, chunk]], 0, -1, nl.not_equal, 1.0)
    return system, attention


def recall(layout, plan, reader, inverse_t):
    """-(T exp(G) K)^T: what a unit of state takes from the corrections."""
    lanes = layout["lanes"]
    key_size = layout["key_size"]
    chunk = plan["chunk"]
    per_bank = BANK // chunk
    result = sbuf(key_size, lanes * chunk, plan["bounded"])
    for first in range(0, lanes, per_bank):
        count = min(per_bank, lanes - first)
        bank = psum_bank()
        for slot in range(count):
            nisa.nc_matmul(
                dst=bank[0:key_size, slot * chunk : (slot + 1) * chunk],
                stationary=part(reader, first + slot, key_size),
                moving=part(inverse_t, first + slot, chunk),
                accumulate=False,
            )
        nisa.activation(
            dst=result[:, first * chunk : (first + count) * chunk],
            op=nl.copy,
            data=bank[0:key_size, 0 : count * chunk],
            scale=-1.0,
        )
    return result
