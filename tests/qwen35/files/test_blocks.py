"""Copies in the other order: every bit where it belongs, whatever the dtypes and sizes."""

import pytest
import torch

from qwen35.files.blocks import blocks, copy_rows, copy_transposed

DTYPES = (torch.bfloat16, torch.float32, torch.float16, torch.float64)


def bits(tensor):
    size = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.itemsize]
    return tensor.contiguous().view(size)


def values(rows, columns, dtype):
    """All kinds of numbers: NaN, infinities, both zeros, subnormal ones."""
    found = torch.randn(rows, columns, dtype=torch.float64).to(dtype)
    special = [float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-40, -1e-40]
    flat = found.view(-1)
    flat[:: max(1, flat.numel() // 7)][:7] = torch.tensor(special[: min(7, flat.numel())]).to(dtype)
    return found


@pytest.mark.parametrize("rows, columns", [(1, 1), (3, 7), (64, 66), (70, 1030), (5, 2)])
@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", [torch.bfloat16, torch.float32])
def test_a_matrix_in_the_other_order(rows, columns, source, target):
    block, room = values(rows, columns, source), torch.full((columns, rows + 5), 9.0, dtype=target)
    copy_transposed(room[:, 2 : 2 + rows], block)
    expected = torch.full_like(room, 9.0)
    for row in range(rows):
        expected[:, 2 + row] = block[row].to(target)
    finite = expected.isfinite()
    assert torch.equal(bits(room)[finite], bits(expected)[finite])
    assert torch.equal(room.isnan(), expected.isnan())
    assert torch.equal(room.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("rows, columns", [(5, 7), (33, 128)])
def test_bytes_and_halves_of_numbers_keep_every_bit(rows, columns):
    for dtype in (torch.uint8, torch.int8, torch.float8_e4m3fn):
        block = torch.randint(0, 256, (rows, columns), dtype=torch.uint8).view(dtype)
        room = torch.zeros(columns, rows, dtype=torch.uint8).view(dtype)
        copy_transposed(room, block)
        assert torch.equal(bits(room), bits(block).T)
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(256, 256).view(torch.bfloat16)
    room = torch.zeros(256, 256, dtype=torch.bfloat16)
    copy_transposed(room, patterns)
    assert torch.equal(bits(room), bits(patterns).T)
    wide = torch.zeros(256, 256)
    copy_transposed(wide, patterns)
    assert torch.equal(bits(wide), (bits(patterns).T.int() << 16))


def test_rows_are_copied_in_parts():
    block = values(300, 257, torch.bfloat16)
    room = torch.zeros(300, 300)
    copy_rows(room[:, 1:258], block)
    assert torch.equal(room[:, 1:258].nan_to_num(), block.float().nan_to_num())
    assert not room[:, :1].any() and not room[:, 258:].any()


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("rows, columns", [(1, 1), (7, 300_000), (5000, 300), (3000, 1000)])
def test_blocks_cover_a_matrix_once(rows, columns, by_columns):
    seen = torch.zeros(rows, columns, dtype=torch.int8)
    for row, height, column, width in blocks(rows, columns, by_columns):
        seen[row : row + height, column : column + width] += 1
        assert height * width <= max(2**18, 64 * columns, 128 * rows)
    assert bool((seen == 1).all())
