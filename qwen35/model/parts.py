"""Tokens on their way through the layers: of one batch, or of several at once.

What has weights takes the tokens of all batches together, the mixers each batch with its state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..forms import columns
from ..sharding.collectives import all_reduce
from ..xla.devices import indices
from .config import Config
from .params import Params
from .rope import rope_table
from .stacked_layers import like
from .state import State, capacity_of
from .tokens import last_token


@dataclass(frozen=True)
class Part:
    """Rows of a batch, and the tokens of theirs that are read. See `decoder.forward`."""

    state: State
    tokens: Tensor
    lengths: Tensor | None
    embeds: Tensor | None = None
    positions: Tensor | None = None

    @property
    def step(self) -> Tensor:
        """The number of each token: [T]."""
        return indices(self.tokens.shape[1], self.tokens.device)

    @property
    def valid(self) -> Tensor | None:
        """Where tokens are no padding: [B, T] bool; None where all are."""
        return None if self.lengths is None else self.step < self.lengths[:, None]

    @property
    def words(self) -> Tensor:
        """The tokens, 0 for padding."""
        valid = self.valid
        return self.tokens if valid is None else torch.where(valid, self.tokens, 0)

    def placeholders(self, config: Config) -> Tensor:
        """Where a token stands for a part of an image or a video: [B, T] bool."""
        here = (self.tokens == config.image_token_id) | (self.tokens == config.video_token_id)
        valid = self.valid
        return here if valid is None else here & valid

    def rotations(self, config: Config) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the tokens' rotary positions."""
        if self.positions is not None:
            return rope_table(config, self.positions)
        start = self.state.position + self.state.rope_offset
        return rope_table(config, start[:, None] + self.step)

    def within_capacity(self, x: Tensor) -> Tensor:
        """x [B, T, H], or [B, 1, H] of each row's last token, but NaN for tokens that found the
        cache full: who compiled this can't be told otherwise, and beside a layer it is nothing."""
        capacity = capacity_of(self.state.layers)
        if capacity is None:
            return x
        slot = self.state.position[:, None] + self.step
        slot = last_token(slot, self.lengths) if x.shape[1] < self.tokens.shape[1] else slot
        return torch.where((slot < capacity)[..., None], x, float("nan"))

    def after(self, layers: Sequence[Any]) -> State:
        """The state after the tokens, which has these layers."""
        position, offset = self.state.position, self.state.rope_offset
        length, lengths = self.tokens.shape[1], self.lengths
        advance = length if lengths is None else lengths.to(position.dtype)
        if self.positions is not None:
            offset = _next_offset(self.state, self.positions, self.valid, advance)
        return State(position + advance, offset, like(self.state.layers, layers))


def _next_offset(
    state: State, positions: Tensor, valid: Tensor | None, advance: int | Tensor
) -> Tensor:
    """The offset [B] that puts the next text token one beyond the highest position so far.

    The highest so far, not of these tokens: a piece of an image can lie below an earlier one.
    """
    highest = positions.to(torch.int32).amax(0)  # [B, T]
    if valid is not None:
        highest = torch.where(valid, highest, -1)
    following = torch.maximum(state.position + state.rope_offset, highest.amax(1) + 1)
    return following - (state.position + advance)


def joined(xs: Sequence[Tensor]) -> Tensor:
    """The tokens of several tensors [B, T, ...] as those of one row: [1, N, ...]; or the only
    one."""
    return xs[0] if len(xs) == 1 else torch.cat([x.flatten(0, 1) for x in xs])[None]


def split_tokens(x: Tensor, sizes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """What `joined` joined, of these B and T each."""
    if len(sizes) == 1:
        return [x]
    pieces = x[0].split([rows * tokens for rows, tokens in sizes])
    return [piece.unflatten(0, size) for piece, size in zip(pieces, sizes, strict=True)]


def enter(params: Params, parts: Sequence[Part]) -> Tensor:
    """What the first layer takes: the tokens' embeddings, `joined`."""
    x = params.forms.activations(_embed(params, joined([part.words for part in parts])))
    if all(part.embeds is None for part in parts):
        return x
    xs = split_tokens(x, [tuple(part.tokens.shape) for part in parts])
    for number, part in enumerate(parts):
        if part.embeds is not None:
            here = part.placeholders(params.config)[..., None]
            xs[number] = torch.where(here, part.embeds.to(x.dtype), xs[number])
    return joined(xs)


def _embed(params: Params, tokens: Tensor) -> Tensor:
    flat = tokens.flatten()
    if params.tp_index is not None:
        # This rank holds some of the vocabulary; other ids get their embedding from their rank.
        flat, here = params.vocabulary.locate(flat)
    if params.embed is None:  # tied: the head [H, V] serves both
        x = columns(params.head, flat).T
    else:
        x = params.embed.index_select(0, flat)
    if params.tp_index is not None:
        x = all_reduce(torch.where(here[:, None], x, 0.0), params.runtime.mesh)
    return x.unflatten(0, tuple(tokens.shape))
