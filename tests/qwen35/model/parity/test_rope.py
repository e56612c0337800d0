"""Rotary positions are those of transformers, for text and for images (mRoPE).

Tolerance of the table: none but for the last bit of a cosine; angles are formed of the same numbers
in the same order, and a frequency one rounding off is 0.02 off at a position of 300,000. Rotated
values of up to 5 are rounded three times: 2e-6.
"""

import pytest
import torch
from transformers.models.qwen3_5.modeling_qwen3_5 import apply_rotary_pos_emb

from qwen35.model.rope import apply_rope, rope_table

# Sections in and out of proportion, a half and a quarter of the head, bases of 100 to 1e7.
CASES = [
    "attention_first_explicit_types",
    "value_heads_x2_tied",
    "value_heads_x3_gqa6_odd_hidden",
    "conv2_interval2_gqa6",
    "published_head_sizes",
    "yarn_beyond_16",
]
POSITIONS = {
    "text": torch.tensor([[0, 1, 2, 3, 4], [17, 18, 19, 20, 21]]),
    "long_text": torch.tensor([[1_000, 32_767], [131_072, 300_000]]),
    "image": torch.tensor(
        [
            [[7, 7, 7, 7, 7, 7, 10], [0, 0, 0, 0, 3, 4, 5]],  # t
            [[7, 7, 7, 8, 8, 8, 10], [0, 0, 1, 1, 3, 4, 5]],  # h
            [[7, 8, 9, 7, 8, 9, 10], [0, 1, 0, 1, 3, 4, 5]],  # w
        ]
    ),
    "any": torch.randint(5_000, (3, 2, 40), generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("positions", list(POSITIONS))
@pytest.mark.parametrize("case", CASES)
def test_table_is_that_of_transformers(pair, case, positions):
    both = pair(case, "full_attention")
    theirs = both.rotations(POSITIONS[positions])
    for ours, expected in zip(rope_table(both.config, POSITIONS[positions]), theirs, strict=True):
        pairs = expected.shape[-1] // 2
        assert torch.equal(expected[..., :pairs], expected[..., pairs:])
        torch.testing.assert_close(ours, expected[..., :pairs], rtol=0, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_rotated_heads_are_those_of_transformers(pair, case):
    """The table is transformers', so that this says whether the rotation is right by itself."""
    both = pair(case, "full_attention")
    cos, sin = both.rotations(POSITIONS["any"])
    pairs = cos.shape[-1] // 2
    generator = torch.Generator().manual_seed(1)
    query, key = (
        torch.randn(2, 40, heads, both.config.head_dim, generator=generator)
        for heads in (both.config.num_attention_heads, both.config.num_key_value_heads)
    )
    theirs = apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=2)
    for x, expected in zip((query, key), theirs, strict=True):
        ours = apply_rope(x, cos[..., :pairs], sin[..., :pairs])
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)
        assert torch.equal(ours[..., 2 * pairs :], x[..., 2 * pairs :])
