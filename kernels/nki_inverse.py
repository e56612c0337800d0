"""The inverse of a chunk's unit lower triangular systems, merged from small blocks.

T = A^-1 starts as the identity. Merging blocks of b = 1, 2, 4, ... rows, with X the blocks of A T
that stand just below its diagonal blocks of b rows:

    T <- T (I - X)

This is as accurate as substitution whatever the keys are; the series (I - N)(I + N^2)(I + N^4)...
of A = I + N is not: powers of N grow before they vanish. The diagonal of A T is exactly 1 at
every level, so that I - X is A T times a mask of 1, -1 and 0. A merge changes only the columns of
T that belong to even blocks, and in its transpose those of odd blocks, so that everything is
done on tiles of half the width.
"""

import nki.isa as nisa
import nki.language as nl

from .nki_tiles import BANK, convert, part, psum_bank, sbuf, select

MASKED = -1e9  # its exp is 0
LANES = 8  # of a block: their half-width tiles of 64 columns fill a PSUM bank


def make_constants(plan):
    """Identities, triangles and the merges' masks, made on chip once per call."""
    chunk = plan["chunk"]
    half = chunk // 2
    ones = sbuf(chunk, 128, nl.float32)
    nisa.memset(dst=ones, value=1.0, engine=plan["spare"])
    zeros = sbuf(chunk, BANK, nl.float32)
    nisa.memset(dst=zeros, value=0.0, engine=nisa.engine.vector)
    square = ones[:, 0:chunk]
    identity = sbuf(chunk, chunk, nl.float32)
    select(identity, square, [[-1, chunk]], 0, 1, nl.equal, 0.0)
    identity_bf16 = convert(identity, chunk, chunk, nl.bfloat16)
    until = sbuf(chunk, chunk, nl.float32)  # 1 where partition <= column
    select(until, square, [[1, chunk]], 0, -1, nl.greater_equal, 0.0)
    after = sbuf(chunk, chunk, nl.float32)  # 1 where partition > column
    select(after, square, [[-1, chunk]], -1, 1, nl.greater_equal, 0.0)
    pattern = [[0, BANK // chunk], [1, chunk]]
    select(zeros, zeros, pattern, 0, -1, nl.greater_equal, MASKED)
    future = convert(zeros, chunk, BANK, nl.bfloat16)  # MASKED where partition > column
    if not plan["exact"]:
        identity = convert(identity, chunk, chunk, plan["bounded"])

    levels = plan["levels"]
    merge = sbuf(chunk, levels * half, nl.float32)
    nisa.memset(dst=merge, value=1.0, engine=nisa.engine.vector)
    for level in range(levels):
        # Columns of the even blocks: 1 on the diagonal (and above, where A T is 0), -1 below it
        # down to the end of the block below, then 0.
        size = 2**level
        count = half // size
        tile = part(merge, level, half)
        diagonal = [[2 * size, count], [1, size]]
        select(tile, tile, diagonal, 0, -1, nl.greater_equal, -1.0)
        ends = [[2 * size, count], [0, size]]
        select(tile, tile, ends, 2 * size - 1, -1, nl.greater_equal, 0.0)
    return {
        "ones": ones,
        "identity": identity,
        "identity_bf16": identity_bf16,
        "until": until,
        "after": after,
        "future": future,
        "merge": merge,
    }


def make_factors(layout, plan, constants):
    """The merges' factors I - X, one tile per level from the second on.

    A merge writes the columns of even blocks; those of odd blocks are the identity for good.
    """
    lanes = layout["lanes"]
    chunk = plan["chunk"]
    factors = []
    for level in range(1, plan["levels"]):
        tile = sbuf(chunk, lanes * chunk, plan["bounded"])
        nisa.tensor_copy(
            dst=blocks(tile, lanes, chunk, level, 1),
            src=spread(constants["identity"], lanes, chunk, level, 1),
            engine=nisa.engine.scalar,
        )
        factors.append(tile)
    return factors


# Views: the columns of even (0) or odd (1) blocks of 2^level, as [rows, lanes, blocks, size].


def blocks(tile, lanes, chunk, level, odd):
    """Of every lane of a tile [chunk, lanes x chunk]."""
    size = 2**level
    return tile.ap(
        pattern=[[lanes * chunk, chunk], [chunk, lanes], [2 * size, chunk // 2 // size], [1, size]],
        offset=odd * size,
    )


def lane_blocks(tile, lanes, lane, chunk, level, odd):
    """Of one lane of a tile [chunk, lanes x chunk]."""
    size = 2**level
    return tile.ap(
        pattern=[[lanes * chunk, chunk], [2 * size, chunk // 2 // size], [1, size]],
        offset=lane * chunk + odd * size,
    )


def spread(square, lanes, chunk, level, odd):
    """Of a tile [chunk, chunk], the same for every lane."""
    size = 2**level
    return square.ap(
        pattern=[[chunk, chunk], [0, lanes], [2 * size, chunk // 2 // size], [1, size]],
        offset=odd * size,
    )


def packed(tile, width, lanes, stride, offset, chunk, level):
    """Half-width results that lie side by side (a bank: stride half; a mask: stride 0)."""
    size = 2**level
    return tile.ap(
        pattern=[[width, chunk], [stride, lanes], [size, chunk // 2 // size], [1, size]],
        offset=offset,
    )


def bank_blocks(bank, lane, chunk, level):
    """Half-width results of one lane in a bank, in the shape of the moving operand that gives them.

    The addresses are those of a plain slice. No published kernel gives a matmul a flat destination
    for a moving operand of several free dimensions.
    """
    size = 2**level
    half = chunk // 2
    return bank.ap(
        pattern=[[BANK, chunk], [size, half // size], [1, size]],
        offset=lane * half,
    )


def make_inverse(layout, plan, constants, odd):
    """A tile for T (odd = 1) or its transpose (odd = 0).

    The columns that the first merge leaves alone are the identity's.
    """
    lanes = layout["lanes"]
    chunk = plan["chunk"]
    tile = sbuf(chunk, lanes * chunk, plan["bounded"])
    nisa.tensor_copy(
        dst=blocks(tile, lanes, chunk, 0, odd),
        src=spread(constants["identity"], lanes, chunk, 0, odd),
        engine=plan["spare"],
    )
    return tile


def find_factor(layout, plan, level, constants, factors, system, inverse):
    """I - X of a level, on the columns of even blocks; the first one is T itself."""
    lanes = layout["lanes"]
    chunk = plan["chunk"]
    half = chunk // 2
    bank = psum_bank()
    for lane in range(lanes):
        if level == 0:
            moving = lane_blocks(constants["identity"], 1, 0, chunk, 0, 0)
        else:
            moving = lane_blocks(inverse, lanes, lane, chunk, level, 0)
        nisa.nc_matmul(
            dst=bank_blocks(bank, lane, chunk, level),
            stationary=part(system, lane, chunk),
            moving=moving,
            accumulate=False,
        )
    factor = inverse if level == 0 else factors[level - 1]
    nisa.tensor_tensor(
        dst=blocks(factor, lanes, chunk, level, 0),
        data1=packed(bank, BANK, lanes, half, 0, chunk, level),
        data2=packed(
            constants["merge"], plan["levels"] * half, lanes, 0, level * half, chunk, level
        ),
        op=nl.multiply,
        engine=nisa.engine.vector,
    )


def apply_factor(layout, plan, level, constants, factors, inverse, inverse_t):
    """T <- T (I - X) on the columns of even blocks, T^T <- (I - X)^T T^T on those of odd ones."""
    lanes = layout["lanes"]
    chunk = plan["chunk"]
    half = chunk // 2
    if level == 0:
        factor = inverse
    else:
        factor = factors[level - 1]
    # After the last merge only the transpose is read.
    if level > 0 and level < plan["levels"] - 1:
        bank = psum_bank()
        for lane in range(lanes):
            nisa.nc_matmul(
                dst=bank_blocks(bank, lane, chunk, level),
                stationary=part(inverse_t, lane, chunk),
                moving=lane_blocks(factor, lanes, lane, chunk, level, 0),
                accumulate=False,
            )
        nisa.tensor_copy(
            dst=blocks(inverse, lanes, chunk, level, 0),
            src=packed(bank, BANK, lanes, half, 0, chunk, level),
            engine=nisa.engine.scalar,
        )
    bank = psum_bank()
    for lane in range(lanes):
        if level == 0:
            moving = lane_blocks(constants["identity"], 1, 0, chunk, 0, 1)
        else:
            moving = lane_blocks(inverse_t, lanes, lane, chunk, level, 1)
        nisa.nc_matmul(
            dst=bank_blocks(bank, lane, chunk, level),
            stationary=part(factor, lane, chunk),
            moving=moving,
            accumulate=False,
        )
    nisa.tensor_copy(
        dst=blocks(inverse_t, lanes, chunk, level, 1),
        src=packed(bank, BANK, lanes, half, 0, chunk, level),
        engine=nisa.engine.scalar,
    )
