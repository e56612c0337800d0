"""Patch embedding, learned positions and rotations are those of transformers' `Qwen3_5VisionModel`.

Its tower without blocks gives the embedded patches, and its rotary embedding is listened to.
Tolerance: activations of up to 5, from sums of 96 products and of four positions: 1e-5; of a
cosine of equal angles, the last bit.
"""

import dataclasses
import math

import pytest
import torch

from qwen35.vision.frames import groups
from qwen35.vision.tower import hidden_states


@pytest.mark.parametrize(
    "grid",  # in tokens; of 5 x 5 learned positions
    [[(1, 1, 1)], [(1, 2, 7)], [(1, 9, 1)], [(3, 2, 1), (1, 5, 3)]],
    ids=["one_token", "wide", "tall", "video_and_image"],
)
@pytest.mark.parametrize("size", ["small", "merge_3"])
def test_is_that_of_transformers(pair, size, grid):
    both = pair(size)
    merge = both.config.spatial_merge_size
    grid = [(frames, merge * height, merge * width) for frames, height, width in grid]
    generator = torch.Generator().manual_seed(0)
    count = sum(math.prod(entry) for entry in grid)
    patches = torch.randn(count, both.config.patch_dim, generator=generator)

    rotations = []
    both.model.rotary_pos_emb.register_forward_hook(lambda *call: rotations.append(call[-1]))
    both.model.blocks = torch.nn.ModuleList()
    theirs = both.model(patches, torch.tensor(grid)).last_hidden_state
    [(cos, sin)] = rotations

    embedding = dataclasses.replace(both.params, blocks=())
    half, start = both.config.head_dim // 2, 0
    for group in groups(both.config, patches, grid):
        real = int(group.count)
        ours = hidden_states(embedding, group)[:, :real]
        for frame in ours:
            here = slice(start, start + real)
            torch.testing.assert_close(frame, theirs[here], rtol=0, atol=1e-5)
            torch.testing.assert_close(group.cos[0, :real], cos[here, :half], rtol=0, atol=1e-7)
            torch.testing.assert_close(group.sin[0, :real], sin[here, :half], rtol=0, atol=1e-7)
            start += real
    assert start == count
