"""The merger is transformers' `Qwen3_5VisionPatchMerger`.

Tolerance: activations of up to 5, from sums of at most 224 products in another order: 1e-5.
"""

import pytest
import torch

from qwen35.vision.tower import tower


@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (2, 5)])
@pytest.mark.parametrize("size", ["small", "odd", "merge_3"])
def test_is_that_of_transformers(pair, size, frames, tokens):
    both = pair(size)
    patches = tokens * both.config.merge_factor
    hidden = both.hidden(frames, patches)
    theirs = both.model.merger(hidden.flatten(0, 1)).unflatten(0, (frames, tokens))
    pairs = both.config.head_dim // 2
    none = torch.ones(patches, pairs), torch.zeros(patches, pairs)  # there is nothing to rotate
    ours = tower(both.only(), both.frames(hidden, *none))[:, :tokens]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
