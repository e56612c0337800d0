"""Work that replicas share out: each draws what it does next, and sends the first one what came.

Both go through the store at which the processes met when they were started, on one machine or on
several: who is faster draws more, and nobody waits for another before the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch import distributed
from torch.distributed import distributed_c10d

from . import process
from .mesh import Mesh

_POLL = 0.05  # seconds


class Draws:
    """One replica's end: of the first process of a tp group, which the others follow.

    Args:
        mesh: of several dp rows, whose processes have been started.
        rank: this process's.
        name: of the work, the same everywhere; another one for other work.
    """

    def __init__(self, mesh: Mesh, rank: int, name: str) -> None:
        self._mesh = mesh
        self._replica = mesh.coordinates(rank)[0]
        self._store = distributed.PrefixStore(name, distributed_c10d._get_default_store())
        self._sent = 0
        self._received = [0] * mesh.dp

    def draw(self) -> int:
        """Returns the next number, from 0, that no replica has drawn."""
        return self._store.add("drawn", 1) - 1

    def send(self, content: bytes) -> None:
        """Sends something to the first replica."""
        self._store.set(f"{self._replica}/{self._sent}", content)
        self._sent += 1

    def receive(self) -> list[bytes]:
        """Returns, in the first replica, what the others have sent since the last time."""
        found = []
        for replica in range(1, self._mesh.dp):
            while self._store.check([key := f"{replica}/{self._received[replica]}"]):
                found.append(self._store.get(key))
                self._store.delete_key(key)
                self._received[replica] += 1
        return found

    def finish(self, take: Callable[[bytes], None] | None) -> None:
        """Waits until all replicas have come here, for as long as all of them live.

        Args:
            take: in the first replica, gets what the others send until then.

        Raises:
            ConnectionError: one has gone; what it had sent has been taken.
        """
        errors: list[Exception] = []

        def wait() -> None:
            try:
                process.gather_objects(None, self._mesh)
            except Exception as error:
                errors.append(error)

        # A daemon: nobody waits for it if this process has to end.
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        while waiting.is_alive():
            waiting.join(_POLL)
            for content in self.receive() if take is not None else ():
                take(content)
        for content in self.receive() if take is not None else ():
            take(content)
        if errors:
            raise ConnectionError(
                f"another replica has gone, with what it had drawn last ({errors[0]})"
            )
