"""The `qwen35` command.

Standard output carries results only; progress, timings and errors go to standard error. Exit
codes: 0 success, 2 bad input, 130 interrupted, 141 the reader has gone, 143 terminated.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

from ..version import __version__
from . import bench, chat, convert, evaluate, export, generate, info

# In the order in which a person meets them.
_COMMANDS = {
    "generate": generate,
    "chat": chat,
    "eval": evaluate,
    "bench": bench,
    "info": info,
    "convert": convert,
    "export": export,
}
_HELP = """\
Qwen3.5 (gated DeltaNet + attention) on torch-xla. DIR is a checkpoint in the Hugging Face format;
the repository ships two toys, demo and demo_vision.

  qwen35 info 27b                                   what a model takes, by its name or DIR
  qwen35 generate --model DIR --prompt "Once upon"  text to standard output
  qwen35 chat --model DIR                           a conversation in the terminal
  qwen35 eval perplexity --model DIR --text FILE    how well it predicts a text
  qwen35 bench ttft tpot --model DIR                how fast it is, beside transformers
"""
_EPILOG = """\
`qwen35 COMMAND --help` explains a command, with examples. Results go to standard output, progress
and errors to standard error. Exit codes: 0 success, 2 bad input, 130 interrupted, 143 terminated.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    try:
        options = _parser().parse_args(arguments)
        with _unwound_by_sigterm():
            return options.run(options)
    except KeyboardInterrupt:
        print("\nqwen35: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone; without this the interpreter complains again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        print(f"qwen35: error: {error}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """Ends the block at SIGTERM as at Ctrl-C: files aside and child processes go with it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the clearing up
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Parser(argparse.ArgumentParser):
    """Refuses bad options as other bad input is refused: in one line."""

    def error(self, message: str) -> NoReturn:
        """Raises a ValueError with the message, which names the option."""
        raise ValueError(f"{message} (`{self.prog} --help` explains)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="qwen35",
        description=_HELP,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"qwen35 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=module.run)
        module.add_options(command)
    return parser
