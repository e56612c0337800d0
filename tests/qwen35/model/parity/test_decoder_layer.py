"""The decoder layer, of either kind, is transformers' `Qwen3_5DecoderLayer`.

Ours has no function of its own: it is `forward` of a model of one layer, between the embedding and
the final norm. Tolerance: that of the mixers, with residuals near 4 and a norm after them.
"""

import functools

import pytest
import torch

import qwen35

assert_close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-5)

CASES = ["value_heads_x3_gqa6_odd_hidden", "value_heads_x2_tied"]
KINDS = ["linear_attention", "full_attention"]


def run(both, tokens, lengths):
    """transformers' hidden states after pieces of these lengths, with a cache between them."""
    cache, pieces, seen = both.cache(), [], 0
    model = both.model.model
    for piece in tokens.split(lengths, dim=1):
        slots = torch.arange(seen + piece.shape[1])
        mask = torch.where(slots <= slots[seen:, None], 0.0, float("-inf"))[None, None]
        linear = both.theirs.block_type == "linear_attention"
        out = both.theirs(
            model.embed_tokens(piece),
            both.rotations(slots[None, seen:]),
            attention_mask=None if linear else mask,
            past_key_values=cache,
        )
        pieces.append(model.norm(out))
        seen += piece.shape[1]
    return torch.cat(pieces, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_is_that_of_transformers(pair, case, kind):
    """A prefill, another one after it, and a single token; and logits of the last token alone."""
    both = pair(case, kind)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(both.config.vocab_size, (2, 21), generator=generator)
    lengths = (7, 13, 1)
    theirs = run(both, tokens, lengths)
    assert 0.2 < theirs.std() < 2
    state = qwen35.init_state(both.params, batch=2, capacity=24)
    pieces = []
    for piece in tokens.split(lengths, dim=1):
        logits, _ = qwen35.prefill(both.params, state, piece)
        hidden, state = qwen35.forward(both.params, state, piece)
        pieces.append(hidden)
        assert_close(logits, both.model.lm_head(theirs[:, sum(p.shape[1] for p in pieces) - 1]))
    assert_close(torch.cat(pieces, 1), theirs)
