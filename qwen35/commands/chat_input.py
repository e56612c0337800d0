"""What a person types in a chat, or what comes through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from ..sharding.torchrun import launched

HELP = "/help lists commands; Alt-Enter, or \\ before Enter, begins another line"


def messages() -> Iterator[str]:
    """Yields what the user says, without blanks around it; never nothing.

    In a terminal a message may have several lines, typed or pasted, and earlier ones come back with
    the arrow keys. Of anything else a line is a message, and one that is not UTF-8 is left out.
    """
    interactive = sys.stdin.isatty()
    read = _prompt() if interactive else _read_line
    if interactive:
        note(HELP)
    while True:
        try:
            message = read()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            note(f"error: the line is not UTF-8 text ({error})")
            continue
        except KeyboardInterrupt:
            if launched():  # torchrun ends all ranks then
                raise
            note("Ctrl-D or /exit ends")
            continue
        if not interactive and not message:
            return
        if message.strip():
            yield message.strip()


def note(text: str) -> None:
    """Says something that is no part of the answers."""
    print(text, file=sys.stderr, flush=True)


def _prompt() -> Callable[[], str]:
    """Returns a function that lets a person write a message."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.current_line_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline()
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def begin_another_line(event: Any) -> None:
        event.current_buffer.newline()

    # Standard output is for answers, also where it is a file.
    session = PromptSession(
        multiline=True,
        key_bindings=keys,
        prompt_continuation=lambda width, line, wrapped: "  ",
        output=create_output(stdout=sys.stderr),
    )
    return lambda: session.prompt("> ")


def _read_line() -> str:
    """Reads a line of what is no terminal; one that is not UTF-8 does not spoil the next."""
    source = getattr(sys.stdin, "buffer", None)
    return sys.stdin.readline() if source is None else source.readline().decode("utf-8")
