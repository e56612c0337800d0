"""Calls that one process makes in all processes of its tp group, so that they stay alike.

The first process of a group leads: before it does something it tells the others what, and all do
it. What they compute from equal calls is equal, so nothing else has to be sent; that it was equal
is compared with the next call, by a digest of what came of the last one.
"""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

import torch
from torch import distributed

from . import process
from .mesh import Mesh

_SHORT = 1000  # bytes of a call that go with the digests, in one exchange


class Calls:
    """One process's end of the calls of its tp group. All of a group make one at the same point.

    Args:
        mesh: more than one process in a tp group.
        rank: this process's.

    Attributes:
        leads: whether this is the process whose calls all follow.
    """

    def __init__(self, mesh: Mesh, rank: int) -> None:
        self._group = process.calls_group(mesh)
        self._first = mesh.rank(mesh.coordinates(rank)[0], 0)
        self._outcome = ""
        self.leads = rank == self._first

    def note(self, outcome: str) -> None:
        """Adds to what came of the last call: it has to be the same in all processes."""
        self._outcome += outcome

    def tell(self, call: Any) -> None:
        """Lets the other processes have a call, which can be pickled.

        Raises:
            RuntimeError: the processes disagree, or one has gone or hangs.
        """
        self._exchange(pickle.dumps(call))

    def hear(self) -> Any:
        """Waits for the next call of the process that leads, for as long as that takes.

        Raises:
            RuntimeError: the processes disagree, or one has gone.
        """
        return pickle.loads(self._exchange(b""))

    def _exchange(self, content: bytes) -> bytes:
        """Compares digests and returns the leading process's content."""
        digest = hashlib.sha256(self._outcome.encode()).digest()
        head = len(content).to_bytes(8, "big") + digest + content[:_SHORT]
        mine = torch.frombuffer(bytearray(head.ljust(40 + _SHORT, b"\0")), dtype=torch.uint8)
        everyone = [torch.empty_like(mine) for _ in range(self._group.size())]
        try:
            distributed.all_gather(everyone, mine, group=self._group)
            heads = [bytes(theirs.numpy()) for theirs in everyone]
            self._compare([theirs[8:40] for theirs in heads])
            length = int.from_bytes(heads[0][:8], "big")
            content, missing = heads[0][40 : 40 + length], content[_SHORT:]
            if length > _SHORT:
                rest = torch.frombuffer(
                    bytearray(missing or bytes(length - _SHORT)), dtype=torch.uint8
                )
                distributed.broadcast(rest, self._first, group=self._group)
                content += bytes(rest.numpy())
        except RuntimeError as error:
            if isinstance(error, Disagreement):
                raise
            raise RuntimeError(f"another rank has gone or hangs ({error})") from error
        self._outcome = ""
        return content

    def _compare(self, digests: list[bytes]) -> None:
        if len(set(digests)) == 1:
            return
        outcomes: list[Any] = [None] * len(digests)
        distributed.all_gather_object(outcomes, self._outcome, group=self._group)
        odd = next(index for index, digest in enumerate(digests) if digest != digests[0])
        ours, theirs = (
            process.shortened(outcomes[one], outcomes[other]) for one, other in ((0, odd), (odd, 0))
        )
        raise Disagreement(
            f"the ranks disagree: {ours!r} on rank {self._first} but {theirs!r} on rank "
            f"{self._first + odd}"
        )


class Disagreement(RuntimeError):
    """Equal calls came to something else in some process."""
