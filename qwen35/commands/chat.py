"""`qwen35 chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .options import add_sampling, add_shared, positive, sampling_from, template_from

if TYPE_CHECKING:
    from ..generation.chat import Chat
    from ..generation.request import Request
    from ..generation.sampling import Sampling
    from .launch import Launch

SUMMARY = "chat in the terminal"
_COMMANDS = """\
/retry          another answer to the last message
/edit TEXT      ask this instead of the last message
/image PATH     show an image with the next message
/reset          forget the conversation
/save PATH      write it to a file, with the model's state
/load PATH      go on with it
/exit           end
"""
HELP = f"""\
Chat with a model. A line is a message; the answer streams to standard output. Ctrl-C stops an
answer, Ctrl-D ends. Sampling follows the checkpoint's generation_config.json.

  qwen35 chat --model demo --no-thinking
  qwen35 chat --model DIR --system "You are brief." --thinking-tokens 500
  qwen35 chat --model DIR --tp 4
  torchrun --nproc-per-node 4 -m qwen35 chat --model DIR --tp 4

In the conversation:

{_COMMANDS}"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `qwen35 chat`."""
    option = parser.add_argument
    add_shared(parser, "model", required=True)
    add_shared(parser, "system", "thinking", "template_arg", "reasoning_effort")
    option("--thinking-tokens", type=positive, metavar="N", help="close a thought of N tokens")
    add_shared(parser, "max_new_tokens", default=1024)
    add_shared(parser, "capacity")
    option("--load", metavar="PATH", help="go on with a saved conversation")
    add_shared(parser, "dtype", "weights", "head", "check_finite")
    add_shared(parser, "device")
    add_shared(parser, "tp", default=1)
    add_shared(parser, "timeout")
    add_sampling(parser, "what the checkpoint's generation_config.json recommends")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from ..generation.chat import sampling_defaults
    from .launch import launch

    sampling = sampling_from(options, sampling_defaults(options.model))
    with launch(options, options.device) as ranks:
        _chat(options, ranks, sampling)
    return 0


def _chat(options: argparse.Namespace, ranks: Launch, sampling: Sampling) -> None:
    """Loads the model in every process, and converses in the first."""
    from ..files.checkpoint import load
    from ..generation.chat import Chat
    from ..generation.engine import Engine
    from ..prompts.processor import Processor
    from ..prompts.tokenizer import Tokenizer
    from .launch import with_engine

    params = ranks.on_all_ranks(
        load,
        options.model,
        dtype=options.dtype,
        weights=options.weights,
        head=options.head,
        device=ranks.device,
        runtime=ranks.runtime,
        check_finite=options.check_finite,
        progress=ranks.prints,
    )
    kind = Tokenizer if params.vision is None else Processor
    tokenizer = ranks.on_all_ranks(kind.from_pretrained, options.model)
    longest = params.config.max_position_embeddings
    limit = longest if options.capacity is None else options.capacity
    engine = Engine(
        params,
        tokenizer,
        slots=1,
        capacity=min(1024, limit),
        max_capacity=limit,
        prefill_sizes=4,  # compiled when first met, and a person waits for each
        progress=ranks.prints,
    )

    def converse() -> None:
        chat = Chat(
            engine,
            tokenizer,
            system=options.system,
            thinking=options.thinking,
            thinking_tokens=options.thinking_tokens,
            template=template_from(options),
            sampling=sampling,
            max_new_tokens=options.max_new_tokens,
        )
        if options.load:
            chat.load(options.load)
        _converse(chat)

    with_engine(engine, converse)


def _converse(chat: Chat) -> None:
    images: list[Mapping[str, Any]] = []  # for the next question
    for line in _lines():
        try:
            _handle(chat, line, images)
        except EOFError:
            return
        except (ValueError, OSError) as error:
            _note(f"error: {error}")
        except Exception as error:
            # A conversation is worth more than a line that failed, unless processes that were to
            # do the same have parted over it.
            if chat.engine.batch.params.runtime.mesh is not None:
                raise
            _note(f"error: {type(error).__name__}: {error}")


def _handle(chat: Chat, line: str, images: list[Mapping[str, Any]]) -> None:
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command in ("/image", "/save", "/load"):
        rest = _path(rest)
    if not command.startswith("/"):
        shown, images[:] = list(images), []
        _answer(chat, chat.ask(line, shown))
    elif command == "/retry":
        chat.sampling = dataclasses.replace(chat.sampling, seed=chat.sampling.seed + 1)
        _answer(chat, chat.retry())
    elif command == "/edit" and rest:
        _answer(chat, chat.edit(rest))
    elif command == "/image" and rest:
        images.append(chat.read_image(rest))  # now, not when a question has been typed
    elif command == "/reset":
        images.clear()
        chat.reset()
    elif command == "/save" and rest:
        chat.save(rest)
        _note(f"saved to {rest}")
    elif command == "/load" and rest:
        chat.load(rest)
        _note(f"{sum(message['role'] == 'user' for message in chat.messages)} questions so far")
    elif command == "/exit":
        raise EOFError
    else:
        sys.stderr.write(_COMMANDS)


def _path(text: str) -> str:
    """Returns a path as a shell would: without the quotes around it, and with a home for ~."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return os.path.expanduser(text)


def _answer(chat: Chat, request: Request) -> None:
    """Streams an answer until it ends or Ctrl-C is pressed."""
    with _interruption() as interrupted:
        while not request.done:
            for piece in chat.engine.step():
                print(piece.text, end="", flush=True)
            if interrupted():
                chat.engine.cancel(request)
    print(flush=True)
    if request.error is not None:
        _note(f"error: {request.error}; /retry asks again")
        return
    chat.finish(request)
    completion = request.completion()
    rate = completion.timings.tokens_per_second
    _note(
        f"{completion.finish_reason}; {len(request.tokens) - request.cached_tokens} tokens read, "
        f"{request.cached_tokens} known; first token after {completion.timings.first_token:.2f} s"
        + ("" if rate is None else f", then {rate:.1f} per second")
    )


@contextlib.contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C of the block into an answer to "interrupted?"; a step is not torn."""
    pressed = []

    def note(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """Yields the user's lines, with editing and history where a person types them."""
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):  # not on every platform
            import readline  # noqa: F401 - importing it is what gives `input` both
        _note("/help lists commands")
    while True:
        try:
            line = input("> ") if interactive else _read_line()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            _note(f"error: the line is not UTF-8 text ({error})")
            continue
        except KeyboardInterrupt:
            _note("\nCtrl-D or /exit ends")
            continue
        if not interactive and not line:
            return
        if line.strip():
            yield line.strip()


def _read_line() -> str:
    """Reads a line of what is no terminal; one that is not UTF-8 does not spoil the next."""
    source = getattr(sys.stdin, "buffer", None)
    return sys.stdin.readline() if source is None else source.readline().decode("utf-8")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
