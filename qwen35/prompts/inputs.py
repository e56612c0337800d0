"""Prompts of every kind to what `prefill` takes, piece by piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks.values import as_integer, token_ids
from ..model.params import Params
from ..vision.tower import encode_images
from .processor import Processor, Prompt
from .tokenizer import TokenizerLike

Messages = Sequence[Mapping[str, Any]]
Prompts = str | Prompt | Messages | Sequence[str | Prompt | Messages | Sequence[int]]


class RowPictures(NamedTuple):
    """Pictures of one prompt, encoded; on the CPU, whatever the parameters' device.

    index [n] int64: the token that each vector stands at, ascending; vectors [n, H]; positions
    [3, T] int64.
    """

    index: Tensor
    vectors: Tensor
    positions: Tensor


def encode_prompts(
    params: Params, tokenizer: TokenizerLike, prompts: Prompts
) -> tuple[list[list[int]], list[Prompt | None]]:
    """Returns each prompt's token ids and, where it has been through a processor, what that made.

    Raises:
        ValueError: a prompt is empty or has what is no id of the vocabulary, messages come without
            a `Processor`, a prompt has pictures that these parameters can't see, or a text places
            without pictures.
    """
    if isinstance(prompts, str | Prompt):
        prompts = [prompts]
    if not len(prompts):
        raise ValueError("prompts is empty: at least one prompt is needed")
    if isinstance(prompts[0], Mapping) or as_integer(prompts[0]) is not None:
        prompts = [prompts]
    rows, seen = [], []
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str | Prompt) and len(prompt) and isinstance(prompt[0], Mapping):
            if not isinstance(tokenizer, Processor):
                raise ValueError(
                    f"prompt {number} is messages, which need a qwen35.Processor, not a "
                    f"{type(tokenizer).__name__}"
                )
            prompt = tokenizer(prompt)
        if isinstance(prompt, Prompt):
            _check_pictures(params, prompt, f"prompt {number}")
            seen.append(prompt)
            tokens = prompt.tokens[0].tolist()
            rows.append(token_ids(f"prompt {number}", tokens, params.config.vocab_size))
            continue
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        seen.append(None)
        rows.append(token_ids(f"prompt {number}", ids, params.config.vocab_size))
        if not rows[-1]:
            raise ValueError(f"prompt {number} is empty: at least one token is needed")
        _check_no_places(params, rows[-1], f"prompt {number}")
    return rows, seen


def encode_pictures(params: Params, prompt: Prompt, start: int = 0) -> RowPictures | None:
    """Runs the vision tower on those of a prompt's pictures that have tokens from `start` on.

    None where there are none: what follows is words, for which `prefill` counts positions on.
    """
    index, patches, grid = prompt.images.index, prompt.images.patches, prompt.images.grid
    per_token = len(patches) // max(1, len(index))
    first = known = 0
    for t, h, w in grid:
        end = known + t * h * w // per_token
        if index[end - 1] >= start:
            break
        first, known = first + 1, end
    if first == len(grid):
        return None
    vectors = encode_images(params.vision, patches[known * per_token :], grid[first:])
    return RowPictures(index[known:], vectors, prompt.positions[:, 0])


def piece(rows: Sequence[RowPictures | None], start: int, length: int) -> tuple[Tensor, Tensor]:
    """Cuts out `embeds` [B, length, H] and `positions` [3, B, length] int32 of tokens `start` on.

    A row is None if it is of words only: its positions count on. Zeros stand where a row has no
    picture, or has ended.
    """
    some = next(row for row in rows if row is not None)
    embeds = some.vectors.new_zeros(len(rows), length, some.vectors.shape[1])
    positions = torch.zeros(3, len(rows), length, dtype=torch.int32)
    for number, row in enumerate(rows):
        if row is None:
            positions[:, number] = torch.arange(start, start + length)
            continue
        here = row.positions[:, start : start + length]
        positions[:, number, : here.shape[1]] = here
        first, last = torch.searchsorted(row.index, torch.tensor([start, start + length])).tolist()
        embeds[number, row.index[first:last] - start] = row.vectors[first:last].detach()
    return embeds, positions


def _check_pictures(params: Params, prompt: Prompt, name: str) -> None:
    """Checks that the parameters can see the prompt's pictures."""
    if not prompt.images.grid:
        return
    if params.vision is None:
        raise ValueError(
            f"{name} has {len(prompt.images.grid)} images or videos, but the parameters have no "
            "vision tower: the checkpoint has none, or it was loaded with vision=False"
        )
    tokens = prompt.tokens[0, prompt.images.index]
    ids = params.config.image_token_id, params.config.video_token_id
    if not torch.isin(tokens, torch.tensor(ids)).all():
        raise ValueError(
            f"{name} was made for another model: its placeholders are the tokens "
            f"{tokens.unique().tolist()}, this model's {list(ids)}"
        )


def _check_no_places(params: Params, tokens: list[int], name: str) -> None:
    """Checks that words alone have no place for a picture: no vector would stand at it."""
    ids = {params.config.image_token_id, params.config.video_token_id}
    places = [token for token in tokens if token in ids]
    if places:
        raise ValueError(
            f"{name} has {len(places)} places for images or videos (token {places[0]}), but none "
            "of those: give messages, or what a Processor made of them"
        )
