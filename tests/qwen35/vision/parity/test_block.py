"""A block of the vision tower is transformers' `Qwen3_5VisionBlock`.

Tolerance: activations of up to 10, from sums of at most 80 products in another order: 1e-5.
"""

import pytest
import torch

from qwen35.forms.xla_cpu import attention
from qwen35.vision.tower import hidden_states


def expected(both, hidden):
    """transformers' block on frames [F, P, H], and the rotations [P, head_dim / 2] for both."""
    count, length = hidden.shape[:2]
    generator = torch.Generator().manual_seed(7)
    places = torch.randint(40, (length, 2), generator=generator)
    cos, sin = both.model.rotary_pos_emb(hidden, places)  # [P, head_dim]
    out = both.model.blocks[0](
        hidden.flatten(0, 1),
        cu_seqlens=length * torch.arange(count + 1),
        position_embeddings=(cos.repeat(count, 1), sin.repeat(count, 1)),
    )
    half = cos.shape[-1] // 2
    return out.unflatten(0, (count, length)), (cos[:, :half], sin[:, :half])


@pytest.mark.parametrize(("frames", "patches"), [(1, 4), (1, 36), (3, 12)])
@pytest.mark.parametrize("size", ["small", "odd"])
def test_is_that_of_transformers(pair, size, frames, patches):
    """Every frame attends to itself alone; NaN stands in the padding."""
    both = pair(size)
    hidden = both.hidden(frames, patches)
    theirs, rotations = expected(both, hidden)
    block = both.only(*both.params.blocks)
    ours = hidden_states(block, both.frames(hidden, *rotations))[:, :patches]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("forms", ["xla_cpu"], indirect=True)
@pytest.mark.parametrize(("queries", "scores"), [(1, 1), (10, 800), (40, 1600)])
def test_blocks_of_scores(pair, queries, scores, monkeypatch):
    """What XLA:CPU's form does for large pictures, here for a small one."""
    monkeypatch.setattr(attention, "_FRAME_QUERIES", queries)
    monkeypatch.setattr(attention, "_FRAME_SCORES", scores)
    both = pair("small")
    hidden = both.hidden(1, 36)
    theirs, rotations = expected(both, hidden)
    block = both.only(*both.params.blocks)
    ours = hidden_states(block, both.frames(hidden, *rotations))[:, :36]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
