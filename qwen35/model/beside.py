"""A prompt that is read in the step that decodes other rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .all_ranks import on_all_ranks
from .checks import check_inputs, check_token
from .decoder import last_logits
from .params import Params
from .parts import Part
from .state import State


@on_all_ranks(True, True, True, True, positions=1)
def prefill_and_decode_share(
    params: Params,
    row: State,
    tokens: Tensor,
    lengths: Tensor,
    embeds: Tensor | None,
    positions: Tensor | None,
    rows: State,
    token: Tensor,
    active: Tensor,
) -> tuple[Tensor, State, Tensor, State]:
    """Runs `prefill_share` of `row` and `decode_share` of `rows` as one: every weight is read once
    for both, and ranks exchange what both have at once.

    Args:
        row: the state of some rows, and tokens, lengths, embeds and positions as for `prefill`.
        rows: the state of others, and token and active as for `decode`.

    Returns:
        Logits and new state of the one, then of the other.
    """
    check_inputs(params, row, tokens, lengths, embeds, positions)
    check_token(token, active)
    count = active.to(torch.int32)
    check_inputs(params, rows, token[:, None], count, None, None)
    parts = Part(row, tokens, lengths, embeds, positions), Part(rows, token[:, None], count)
    [(read, row), (decoded, rows)] = last_logits(params, *parts)
    return read, row, decoded, rows
