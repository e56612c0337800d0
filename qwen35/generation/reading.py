"""Prompts on their way into a slot: each is read in pieces into a row of its own, from the best
start that the prefix cache has, and its states are kept there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..prompts.inputs import RowPictures, encode_pictures, piece
from .batch import Batch
from .keeping import Keeper
from .request import Request
from .steps import Rows


class Filling(NamedTuple):
    """A request whose prompt is being read.

    row: what has been read, `done` tokens. stops: the lengths still to come at which the prompt is
    cut and the state kept; the last is the prompt's. pictures: those still to be read, or None.
    """

    request: Request
    row: Rows
    done: int
    stops: tuple[int, ...]
    pictures: RowPictures | None

    @property
    def whole(self) -> bool:
        """Whether all of the prompt has been read."""
        return self.done == len(self.request.tokens)

    def next_end(self, chunk: int) -> int:
        """Returns the prompt length up to which the next prefill step of `chunk` tokens reads."""
        return min(self.done + chunk, self.stops[0])


def start(batch: Batch, keeper: Keeper | None, request: Request, every: int) -> Filling:
    """Prepares a row to read a request's prompt into, from the prefix cache's best start.

    Args:
        keeper: None without a prefix cache.
        every: tokens of a prompt between two states that are kept.
    """
    size = len(request.tokens)
    if keeper is None:
        return Filling(request, batch.blank(), 0, (size,), _encode(batch, request, 0))
    match = keeper.lookup(request.keys)
    request.cached_tokens = match.length
    # Where this prompt leaves another one, a third may leave it too.
    stops = {size, match.shared, *request.boundaries, *range(0, size, every)}
    ahead = tuple(sorted(stop for stop in stops if match.length < stop <= size))
    row = batch.restore(match) if match.snapshot is not None else batch.blank()
    return Filling(request, row, match.length, ahead, _encode(batch, request, match.length))


def next_piece(batch: Batch, filling: Filling) -> Sequence[Tensor | None]:
    """Makes what the next prefill step reads."""
    here = filling.pictures
    pictures = None if here is None else piece([here], filling.done, batch.chunk)
    tokens = filling.request.tokens[filling.done : filling.next_end(batch.chunk)]
    return batch.piece(tokens, pictures)


def keep_piece(keeper: Keeper | None, filling: Filling) -> Filling:
    """Keeps the row in the cache where the prompt was cut for that."""
    if filling.done < filling.stops[0]:
        return filling
    if keeper is not None:
        keeper.keep(filling.request.keys[: filling.done], filling.row)
    return filling._replace(stops=filling.stops[1:])


def _encode(batch: Batch, request: Request, start: int) -> RowPictures | None:
    """Encodes the pictures that are still to be read from `start` on."""
    prompt = request.pictures
    return None if prompt is None else encode_pictures(batch.params, prompt, start)
