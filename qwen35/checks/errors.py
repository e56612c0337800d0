"""The error of a file that does not fit, the note about one that is made to, and what any error
came of."""

from __future__ import annotations

from collections.abc import Iterator


class CheckpointError(ValueError):
    """A checkpoint's file is missing, damaged or does not fit; the text names file and tensor."""


class CheckpointNote(UserWarning):
    """A checkpoint is read otherwise than its files say; the text says how, and why."""


def causes(error: BaseException, contexts: bool = False) -> Iterator[BaseException]:
    """Yields an error and what it came of, each once: `raise error from error` is its own cause.

    Args:
        contexts: whether also what was being handled where an error has no cause.
    """
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (following.__context__ if contexts else None)
