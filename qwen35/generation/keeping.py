"""The way into the prefix cache and out of it, without waiting for the device.

A row is copied on the device as soon as it is to be kept, since the next step consumes it, and
fetched later: when a choice that was made after it has been read, so that the copy is complete and
the device already has the next step to run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from .batch import Batch, Copies
from .prefix_cache import Match, PrefixCache, count_common
from .steps import Rows


class _Copied(NamedTuple):
    """What is on its way into the cache: the row after `keys`, from token `start` on, of the dp row
    `replica`."""

    keys: tuple[int, ...]
    start: int
    copies: Copies
    replica: int


class Keeper:
    """Keeps rows of a batch in a prefix cache.

    Args:
        batch: whose rows they are.
        cache: where they are kept.
        most: copies that wait on the device at a time.
    """

    def __init__(self, batch: Batch, cache: PrefixCache, most: int) -> None:
        self._batch = batch
        self._cache = cache
        self._most = most
        self._copied: deque[_Copied] = deque()

    def keep(self, keys: Sequence[int], row: Rows, replica: int = 0) -> None:
        """Copies a row that has read a prompt of these keys, to be put into the cache.

        Args:
            replica: a dp row that has it, where all are here.
        """
        if len(self._copied) == self._most:
            self.settle()
        start = self._cache.known(keys)
        copies = self._batch.copies(row, start, len(keys))
        self._copied.append(_Copied(tuple(keys), start, copies, replica))

    def settle(self) -> None:
        """Puts all that has been copied into the cache; it waits for copies that have not run.

        A row whose logits are NaN is left out: NaN also comes of the tokens before the one that
        brings it, where they are read together, and prompts that begin alike would take it over.
        """
        while self._copied:
            keys, start, copies, replica = self._copied.popleft()
            kv, snapshot = self._batch.fetch(copies, replica)
            if not snapshot.logits.isnan().all():
                self._cache.insert(keys, kv, snapshot, start)

    def clear(self) -> None:
        """Forgets what has been copied."""
        self._copied.clear()

    def lookup(self, keys: Sequence[int]) -> Match:
        """Finds the best start of a prompt: see `PrefixCache.lookup`."""
        known = self._cache.known(keys)
        if any(count_common(copied.keys, keys, 0) > known for copied in self._copied):
            self.settle()
        return self._cache.lookup(keys)

    def recall(self, keys: Sequence[int]) -> tuple[int, Rows]:
        """Returns how many of these keys the cache knows, and the row after those."""
        match = self.lookup(keys)
        if match.snapshot is None:
            return 0, self._batch.blank()
        return match.length, self._batch.restore(match)
