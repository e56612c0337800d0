"""What the vision tower is given, planned on the host: groups of frames of one size.

Positions, rotations and the count of real patches are data; only the number of frames and the
padded number of patches shape a graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..model.config import VisionConfig

# Patches up to which small frames of one size share a step, so that the weights are read less
# often; more than this is bound by arithmetic.
GROUP_PATCHES = 1024

Size = tuple[int, int, int]


class Frames(NamedTuple):
    """F frames of one height and width, padded to P patches each. Dimension 0 is F or 1.

    Attributes:
        patches: [F, P, patch_dim], in merge order.
        position_index: [1, P, 4] int32, the four learned positions around each patch.
        position_weight: [1, P, 4] float32, their shares.
        cos, sin: [1, P, head_dim / 2] float32, of the rotation angles.
        count: [1, 1] int32, the real patches of a frame.
    """

    patches: Tensor
    position_index: Tensor
    position_weight: Tensor
    cos: Tensor
    sin: Tensor
    count: Tensor


def padded_patches(config: VisionConfig, patches: int) -> int:
    """Returns the size that a frame of so many patches is padded to: less than a quarter more.

    In tokens (merge_factor patches) the sizes are 1 to 8, then 10, 12, 14, 16, 20, 24, … : four
    for every doubling.
    """
    tokens = -(-patches // config.merge_factor)
    step = 1 << max(0, (tokens - 1).bit_length() - 3)
    return -(-tokens // step) * step * config.merge_factor


def padded_sizes(config: VisionConfig, patches: int) -> list[int]:
    """Lists all padded sizes up to that of a frame of so many patches."""
    sizes, last = [], padded_patches(config, patches)
    while not sizes or sizes[-1] < last:
        sizes.append(padded_patches(config, (sizes[-1] if sizes else 0) + 1))
    return sizes


def frames_in_group(length: int) -> int:
    """Counts the frames of `length` patches, padding included, that share a step."""
    return max(1, GROUP_PATCHES // length)


def graph_count(config: VisionConfig, patches: int) -> int:
    """Counts the most graphs that frames of up to so many patches need: 1 or 2 per padded size."""
    return sum(1 + (frames_in_group(length) > 1) for length in padded_sizes(config, patches))


def groups(config: VisionConfig, patches: Tensor, sizes: Sequence[Size]) -> Iterator[Frames]:
    """Cuts [N, patch_dim] into the groups that are computed together, in order.

    Frames go in full groups, and one by one where they are too few for that: a group of every
    number would be a graph of its own.
    """
    start = 0
    for count, height, width in sizes:
        area = height * width
        length = padded_patches(config, area)
        table = _table(config, height, width, length)
        own = patches[start : start + count * area].unflatten(0, (count, area))
        own = torch.nn.functional.pad(own, (0, 0, 0, length - area))
        start += count * area
        full = frames_in_group(length)
        whole = count - count % full
        for group in (*own[:whole].split(full), *own[whole:].split(1)):
            if len(group):
                yield Frames(group, *table)


def _table(config: VisionConfig, height: int, width: int, length: int) -> tuple[Tensor, ...]:
    """Computes the fields of `Frames` that depend on the size alone."""
    row, column = _places(height, width, config.spatial_merge_size)
    side = round(config.num_position_embeddings**0.5)
    rows, row_weights = _neighbours(row, height, side)
    columns, column_weights = _neighbours(column, width, side)
    index = (rows[:, :, None] * side + columns[:, None]).flatten(1)
    weight = (row_weights[:, :, None] * column_weights[:, None]).flatten(1)
    pairs = config.head_dim // 4  # of each of the two axes
    frequency = 1.0 / config.rope_theta ** (torch.arange(pairs, dtype=torch.float32) / pairs)
    angle = torch.cat([row[:, None] * frequency, column[:, None] * frequency], 1)
    fields = (index.to(torch.int32), weight, angle.cos(), angle.sin())
    padded = (torch.nn.functional.pad(field, (0, 0, 0, length - len(row))) for field in fields)
    count = torch.tensor([[len(row)]], dtype=torch.int32)
    return (*(field[None] for field in padded), count)


def _places(height: int, width: int, merge: int) -> tuple[Tensor, Tensor]:
    """Returns row and column of each patch of a frame, in merge order."""
    row = torch.arange(height)[:, None].expand(height, width)
    column = torch.arange(width).expand(height, width)
    blocks = (height // merge, merge, width // merge, merge)
    return tuple(place.reshape(blocks).transpose(1, 2).flatten() for place in (row, column))


def _neighbours(place: Tensor, size: int, side: int) -> tuple[Tensor, Tensor]:
    """Finds the two grid lines around each place and their weights, [n, 2]; ends are ends."""
    exact = place.float() * (side - 1) / max(size - 1, 1)
    low = exact.floor()
    share = exact - low
    lines = torch.stack([low, (low + 1).clamp(max=side - 1)], 1).long()
    return lines, torch.stack([1 - share, share], 1)


def parse_grid(config: VisionConfig, patches: Tensor, grid: Sequence[Sequence[int]]) -> list[Size]:
    """Returns the grid as (frames, height, width) of each picture, checked against the patches.

    Raises:
        ValueError: the shapes do not fit each other or the tower, or a patch is not finite.
    """
    if patches.dim() != 2 or patches.shape[1] != config.patch_dim:
        raise ValueError(
            f"patches must be [N, {config.patch_dim}] ({config.in_channels} channels x "
            f"{config.temporal_patch_size} frames x {config.patch_size} x {config.patch_size} "
            f"pixels), not {list(patches.shape)}"
        )
    if not patches.dtype.is_floating_point:
        raise ValueError(f"patches must be floating point, normalised pixels, not {patches.dtype}")
    entries = grid.tolist() if hasattr(grid, "tolist") else list(grid)
    if not entries:
        raise ValueError("grid is empty: it needs (frames, height, width) for at least one image")
    sizes, merge = [], config.spatial_merge_size
    for number, entry in enumerate(entries):
        values = tuple(entry)
        if len(values) != 3 or any(int(value) != value or value < 1 for value in values):
            raise ValueError(
                f"grid[{number}] must be three positive whole numbers (frames, height, width in "
                f"patches), not {values}"
            )
        if values[1] % merge or values[2] % merge:
            raise ValueError(
                f"grid[{number}] is {values[1]} x {values[2]} patches: both must be multiples of "
                f"{merge}, the patches that are merged into a token"
            )
        sizes.append(tuple(int(value) for value in values))
    total = sum(count * height * width for count, height, width in sizes)
    if total != len(patches):
        raise ValueError(f"grid describes {total} patches, but {len(patches)} are given")
    finite = patches.detach().isfinite().all(1)
    if not finite.all():
        first = int(finite.logical_not().nonzero()[0])
        raise ValueError(
            f"patch {first} of {total} holds NaN or infinite values ({int((~finite).sum())} do)"
        )
    return sizes
