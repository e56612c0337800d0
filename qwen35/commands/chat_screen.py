"""How an answer looks in a terminal, and what of it goes elsewhere."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..generation.answers import Part


class _Style(NamedTuple):
    """What stands around a thought."""

    begin: str
    end: str


_DIMMED, _MARKED = _Style("\x1b[2m", "\x1b[0m"), _Style("<think>\n", "\n</think>")
_CLEAR = "\r\x1b[K"


class Screen:
    """Writes answers to standard output as they come.

    A terminal shows thoughts dimmed, or a sign of them where they are hidden, and calls of tools as
    a name with its arguments. What is no terminal gets what was said and the calls.

    Args:
        thoughts: whether thoughts are shown.
        marked: show them in what is no terminal too, between "<think>" and "</think>".

    Attributes:
        thoughts: as above, and may be changed.
        lost: whether standard output can't be written any more.
    """

    def __init__(self, thoughts: bool, marked: bool = False) -> None:
        self.thoughts = thoughts
        self.lost = False
        self._marked = marked
        self._terminal = sys.stdout.isatty()
        self._style = _DIMMED if self._terminal else _MARKED
        self._last = ""  # the kind of part that came last

    def show(self, part: Part) -> None:
        """Writes a part of an answer."""
        if part.kind == "thought" and not (self._terminal or (self._marked and self.thoughts)):
            return
        if part.kind == "thought":
            begins = self._style.begin if self._last != "thought" else ""
            if self.thoughts:
                self._write(begins + part.text)
            elif begins:
                self._write(f"{begins}thinking …")
        elif part.kind == "call":
            self.leave_thought()
            self._write(("\n" if self._last in ("text", "arguments") else "") + f"{part.text} ")
        else:
            self.leave_thought()
            self._write(
                ("\n" if (self._last, part.kind) == ("arguments", "text") else "") + part.text
            )
        self._last = part.kind

    def end(self) -> None:
        """Ends an answer."""
        self.leave_thought()
        self._write("\n")
        self._last = ""

    def leave_thought(self) -> None:
        """Ends a thought, if that is what was written last."""
        if self._last == "thought":
            self._write(self._style.end + ("\n\n" if self.thoughts else _CLEAR))
            self._last = ""

    def _write(self, text: str) -> None:
        try:
            print(text, end="", flush=True)
        except OSError:
            self.lost = True
            raise


def screen_for(options: argparse.Namespace) -> Screen:
    """Makes the screen that --show-thoughts and --hide-thoughts ask for.

    Raises:
        ValueError: both do.
    """
    if options.show_thoughts and options.hide_thoughts:
        raise ValueError("--show-thoughts and --hide-thoughts: which of them?")
    return Screen(not options.hide_thoughts, marked=options.show_thoughts)
