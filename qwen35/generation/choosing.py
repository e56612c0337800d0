"""The next token in a loop of one's own, chosen as `generate` chooses it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks.values import shown
from ..xla.compiled import compiled
from ..xla.devices import device_put
from .sampling import bias_for, controls_for
from .sampling import choose as choose_with
from .sampling_settings import Sampling, settings_of_rows


def choose(
    logits: Tensor,
    sampling: Sampling | Sequence[Sampling] = Sampling(),
    position: Tensor | None = None,
) -> Tensor:
    """Chooses the next token of each row, the one that `generate` takes after the same tokens.

    Inside a function under `jit` it is part of that one's graph, with these settings for good.

    Args:
        logits: [B, V] float32, as `prefill` and `decode` give them.
        sampling: for all rows, or one for each. Of one for all each row has a seed of its own, as
            in `generate`. `stop` and `ignore_eos` are for the loop to heed.
        position: [B] integers, where in the sequence the token is to stand: `state.position`, of
            the state that came with the logits. Draws depend on it; without a temperature it may
            be left out.

    Returns:
        int64 [B], on the logits' device.

    Raises:
        ValueError: logits of another shape; another number of settings or positions; a draw
            without positions; ids outside the vocabulary; or penalties, a JSON schema or log
            probabilities, which go by more than a row's logits: `generate` and `Engine` have them.
    """
    if logits.dim() != 2:
        raise ValueError(f"logits must be [batch, vocabulary], not {list(logits.shape)}")
    rows, vocabulary = logits.shape
    settings = settings_of_rows(sampling, rows, "rows")
    for one in settings:
        if one.penalized or one.json_schema is not None or one.logprobs is not None:
            raise ValueError(
                "penalties, json_schema and logprobs go by more than the logits of a step, and "
                f"choose has no more: generate and Engine do them ({shown(one)})"
            )
    controls = controls_for(settings, vocabulary)
    if controls.draw is None:
        position = None
    elif position is None:
        raise ValueError("a temperature draws, and a draw goes by the position: state.position")
    if position is not None and tuple(position.shape) != (rows,):
        raise ValueError(f"position must be [{rows}], one a row, not {list(position.shape)}")
    bias = None
    if any(one.biased for one in settings):
        bias = bias_for(settings, vocabulary)
    short = all(one.short for one in settings)
    controls, position, bias = device_put((controls, position, bias), logits.device.type)
    with torch.no_grad():
        choice = compiled(choose_with)(logits, controls, position, None, bias, None, short)
    return choice.token
