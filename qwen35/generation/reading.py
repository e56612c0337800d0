"""Prompts on their way into a slot: each is read in pieces into a row of its own, from the best
start that the prefix cache has, and its states are kept there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..prompts.inputs import RowPictures, encode_pictures, piece
from .batch import Batch
from .prefix_cache import PrefixCache
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


def start(batch: Batch, cache: PrefixCache | None, request: Request, every: int) -> Filling:
    """Prepares a row to read a request's prompt into, from the cache's best start.

    Args:
        every: tokens of a prompt between two states that are kept.
    """
    size = len(request.tokens)
    if cache is None:
        return Filling(request, batch.blank(), 0, (size,), _encode(batch, request, 0))
    match = cache.lookup(request.keys)
    request.cached_tokens = match.length
    # Where this prompt leaves another one, a third may leave it too.
    stops = {size, match.shared, *request.boundaries, *range(0, size, every)}
    ahead = tuple(sorted(stop for stop in stops if match.length < stop <= size))
    row = batch.restore(match) if match.snapshot is not None else batch.blank()
    return Filling(request, row, match.length, ahead, _encode(batch, request, match.length))


def read(batch: Batch, cache: PrefixCache | None, filling: Filling) -> Filling:
    """Reads one chunk of a prompt."""
    request, row, done, stops, pictures = filling
    end = filling.next_end(batch.chunk)
    here = None if pictures is None else piece([pictures], done, batch.chunk)
    row = batch.prefill(row, request.tokens[done:end], here)
    if end == stops[0]:
        stops = stops[1:]
        keep(batch, cache, request.keys[:end], row)
    return filling._replace(row=row, done=end, stops=stops)


def keep(batch: Batch, cache: PrefixCache | None, keys: Sequence[int], row: Rows) -> None:
    """Puts a row that has read a prompt of these keys into the cache."""
    if cache is not None:
        kv = batch.keys_and_values(row, cache.known(keys), len(keys))
        cache.insert(keys, kv, batch.snapshot(row))


def recall(batch: Batch, cache: PrefixCache | None, keys: Sequence[int]) -> tuple[int, Rows]:
    """Returns how many of these keys the cache knows, and the row after those."""
    if cache is not None:
        match = cache.lookup(keys)
        if match.snapshot is not None:
            return match.length, batch.restore(match)
    return 0, batch.blank()


def _encode(batch: Batch, request: Request, start: int) -> RowPictures | None:
    """Encodes the pictures that are still to be read from `start` on."""
    prompt = request.pictures
    return None if prompt is None else encode_pictures(batch.params, prompt, start)
