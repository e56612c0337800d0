"""What the three kernels share below the algorithm: the cut of the work, HBM patterns, masks.

A lane is one value head of one row. A block of lanes is processed together, side by side on the
free axis, so that one instruction serves all of them; value heads that share a key head are
neighbours, and a block reads each of its key heads once. On-chip tiles are two-dimensional,
[partitions, lanes x width]: lane l of width w is columns l w to (l + 1) w.
"""

import nki.isa as nisa
import nki.language as nl

BANK = 512  # float32 of a PSUM bank, per partition


def largest_divisor(count, limit):
    """The largest divisor of `count` that is at most `limit`."""
    best = 1
    for candidate in range(2, count + 1):
        if candidate <= limit:
            if count % candidate == 0:
                best = candidate
    return best


def cut(key_shape, value_shape, most, twins):
    """This program's share of the work and the size of its blocks, at most `most` lanes.

    The shapes are [rows, tokens, heads, size]. With `twins` there are two blocks or more wherever
    there is more than one key head to share out.

    Two programs (LNC 2) split the key heads, or else the rows, or else the columns of the
    values, which the delta rule treats independently. A block is a few key heads of one row, or
    all of them of several rows.
    """
    rows, tokens, key_heads, key_size = key_shape
    value_heads = value_shape[2]
    value_size = value_shape[3]
    group = value_heads // key_heads
    assert value_heads == group * key_heads, "value heads must be a multiple of key heads"
    assert group <= most, "too many value heads per key head"
    assert key_size in (16, 32, 64, 128), "the key size must be 16, 32, 64 or 128"
    assert value_size in (16, 32, 64, 128), "the value size must be 16, 32, 64 or 128"

    programs = nl.num_programs(axes=0)
    rank = nl.program_id(axis=0)
    own_rows = rows
    own_heads = key_heads
    own_columns = value_size
    first_row = 0
    first_head = 0
    first_column = 0
    if key_heads % programs == 0:
        own_heads = key_heads // programs
        first_head = rank * own_heads
    elif rows % programs == 0:
        own_rows = rows // programs
        first_row = rank * own_rows
    else:
        own_columns = value_size // programs
        first_column = rank * own_columns

    block_heads = largest_divisor(own_heads, most // group)
    block_rows = 1
    if block_heads == own_heads:
        block_rows = largest_divisor(own_rows, most // (group * own_heads))
    if twins and block_rows == own_rows and block_heads == own_heads:
        if own_rows > 1:
            block_rows = largest_divisor(own_rows, own_rows // 2)
        elif own_heads > 1:
            block_heads = largest_divisor(own_heads, own_heads // 2)
    return {
        "tokens": tokens,
        "key_heads": key_heads,
        "value_heads": value_heads,
        "key_size": key_size,
        "value_size": value_size,
        "group": group,
        "columns": own_columns,
        "first_column": first_column,
        "first_row": first_row,
        "first_head": first_head,
        "row_blocks": own_rows // block_rows,
        "head_blocks": own_heads // block_heads,
        "block_rows": block_rows,
        "block_heads": block_heads,
        "pairs": block_rows * block_heads,
        "lanes": block_rows * block_heads * group,
    }


def make_plan(chunk, exact, gpsimd, float16):
    """Static choices. Operands bounded by 1 (keys, queries, all of the inverse) keep three bits
    more in float16 than in bfloat16; values and the state have no bound. `spare` is the engine of
    elementwise work that VectorE and ScalarE have no time for."""
    bounded = nl.float32
    unbounded = nl.float32
    if not exact:
        bounded = nl.float16 if float16 else nl.bfloat16
        unbounded = nl.bfloat16
    levels = 0
    for level in range(7):
        if 2**level < chunk:
            levels = level + 1
    return {
        "chunk": chunk,
        "levels": levels,
        "exact": exact,
        "bounded": bounded,
        "unbounded": unbounded,
        "spare": nisa.engine.gpsimd if gpsimd else nisa.engine.vector,
    }


def sbuf(partitions, width, dtype):
    """A new SBUF tile."""
    return nl.ndarray((partitions, width), dtype=dtype, buffer=nl.sbuf)


def psum_bank():
    """A new tile that is one PSUM bank."""
    return nl.ndarray((128, BANK), dtype=nl.float32, buffer=nl.psum)


def part(tile, index, width):
    """Columns of lane (or pair, or bank slot) `index`."""
    return tile[:, index * width : (index + 1) * width]


def select(dst, tile, pattern, offset, multiplier, compare, otherwise):
    """`tile` where `compare(offset + multiplier partition + pattern, 0)`, else `otherwise`."""
    nisa.affine_select(
        dst=dst,
        pattern=pattern,
        offset=offset,
        channel_multiplier=multiplier,
        on_true_tile=tile,
        on_false_value=otherwise,
        cmp_op=compare,
    )


def convert(tile, partitions, width, dtype):
    """A copy of a float32 tile in another dtype: masks are made in float32, whatever reads them."""
    other = sbuf(partitions, width, dtype)
    nisa.tensor_copy(dst=other, src=tile, engine=nisa.engine.scalar)
    return other


# HBM patterns of a block, for `.ap`: partitions first, then rows, heads and the elements of a head.


def token_pattern(layout, heads, head_size, width, count):
    """[count tokens, rows, heads, width] of a tensor [rows, tokens, heads, head_size]."""
    per_row = heads // layout["key_heads"] * layout["block_heads"]
    return [
        [heads * head_size, count],
        [layout["tokens"] * heads * head_size, layout["block_rows"]],
        [head_size, per_row],
        [1, width],
    ]


def token_offset(layout, block, token, heads, head_size, first):
    """Where `token_pattern` starts: at `token`, and at element `first` of a head."""
    row, head = place(layout, block)
    head = heads // layout["key_heads"] * head
    return ((row * layout["tokens"] + token) * heads + head) * head_size + first


def state_pattern(layout):
    """[Dk, rows, value heads, columns] of a state [rows, value heads, Dk, Dv]."""
    matrix = layout["key_size"] * layout["value_size"]
    return [
        [layout["value_size"], layout["key_size"]],
        [layout["value_heads"] * matrix, layout["block_rows"]],
        [matrix, layout["group"] * layout["block_heads"]],
        [1, layout["columns"]],
    ]


def state_offset(layout, block):
    """Where `state_pattern` starts."""
    row, head = place(layout, block)
    matrix = layout["key_size"] * layout["value_size"]
    lane = row * layout["value_heads"] + head * layout["group"]
    return lane * matrix + layout["first_column"]


def place(layout, block):
    """First row and key head of a block."""
    row = layout["first_row"] + block // layout["head_blocks"] * layout["block_rows"]
    head = layout["first_head"] + block % layout["head_blocks"] * layout["block_heads"]
    return row, head
