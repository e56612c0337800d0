"""The `qwen35` command.

Standard output carries results only; progress, timings and errors go to standard error. Exit
codes: 0 success, 1 findings, 2 bad input or output that can't be written, 129 hung up, 130
interrupted, 141 the reader has gone, 143 terminated.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NoReturn

from ..checks import hub
from ..checks.errors import CheckpointNote
from ..ending import exit_code
from ..files.read_ahead import reading_ahead
from ..sharding.torchrun import launched
from ..version import __version__
from . import batch, bench, chat, convert, evaluate, export, generate, info, neuron

# In the order in which a person meets them.
_COMMANDS = {
    "generate": generate,
    "chat": chat,
    "batch": batch,
    "eval": evaluate,
    "bench": bench,
    "info": info,
    "convert": convert,
    "export": export,
    "neuron": neuron,
}
_HELP = """\
Qwen3.5 (gated DeltaNet + attention) on torch-xla. DIR is a checkpoint in the Hugging Face format;
the repository ships two toys, demo and demo_vision.

  qwen35 info 27b                                   what a model takes, by its name or DIR
  qwen35 generate --model DIR --prompt "Once upon"  text to standard output
  qwen35 chat --model DIR                           a conversation in the terminal
  qwen35 batch --model DIR in.jsonl out.jsonl       a file of prompts to a file of answers
  qwen35 eval perplexity --model DIR --text FILE    how well it predicts a text
  qwen35 bench ttft tpot --model DIR                how fast it is, beside transformers
"""
_EPILOG = """\
`qwen35 COMMAND --help` explains a command, with examples. Results go to standard output, progress
and errors to standard error. Exit codes: 0 success, 2 bad input or output that can't be written,
129 hung up, 130 interrupted, 141 nobody reads the output, 143 terminated.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return exit_code(functools.partial(_run, arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        parser = _parser()
        options = parser.parse_args(arguments)
        if options.command is None:
            parser.print_help()
            return 0
        with _notes():
            _fetch(options)
            _wait_asleep(options)
            with _reading_ahead(options):
                return options.run(options)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"qwen35: error: {error}", file=sys.stderr)
        return 2


def _fetch(options: argparse.Namespace) -> None:
    """Puts the directory of the hub's cache in the place of a hub's name.

    So all of a command reads one copy. Where several processes run, one of each machine shows bars.
    """
    if options.command not in ("info", "export") and getattr(options, "model", None) is not None:
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        options.asked_model = options.model
        options.model = str(hub.directory_of(options.model, progress=first))


def _reading_ahead(options: argparse.Namespace) -> AbstractContextManager[None]:
    """Has a checkpoint's files read from the disk while a command that loads it is still importing
    and compiling; of several processes of a machine, the first does."""
    loads = options.command in ("generate", "chat", "batch", "eval")
    if not loads or os.environ.get("LOCAL_RANK", "0") != "0":
        return contextlib.nullcontext()
    return reading_ahead(options.model)


def _wait_asleep(options: argparse.Namespace) -> None:
    """Has torch's threads sleep while they wait for each other, where they are to compute eagerly.

    Threads that wait in loops keep those that they wait for from running, where another process is
    busy: a token took 260 to 420 ms beside one, and 12 to 41 ms so. OpenMP reads this once, when
    torch is imported; a setting of the user's own stays.
    """
    device = getattr(options, "device", "xla")
    eager = device == "cpu" or (device is None and launched())  # see `join_ranks`
    if eager or getattr(options, "eager", False):
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """Shows notes about checkpoints as a line each."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_note(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, CheckpointNote):
                print(f"qwen35: note: {message}", file=sys.stderr)
            else:
                show(message, category, *where, **more)

        warnings.showwarning = show_note
        yield


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
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
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
