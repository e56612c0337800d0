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

from ..sharding.torchrun import launched
from .chat_input import messages, note
from .chat_screen import Screen, screen_for
from .options import add_sampling, add_shared, sampling_from, template_from
from .warming import warming

if TYPE_CHECKING:
    from ..generation.chat import Chat
    from ..generation.request import Request
    from ..generation.sampling_settings import Sampling
    from .launch import Launch

SUMMARY = "chat in the terminal"
_COMMANDS = """\
/retry          another answer to the last message
/edit TEXT      ask this instead of the last message
/image PATH     show an image with the next message
/reset          forget the conversation
/save PATH      write it to a file, with the model's state
/load PATH      go on with it
/thoughts       hide the model's thoughts, or show them again
/exit           end
"""
_ROOM = "/reset begins anew, /edit asks something shorter, --capacity N has more room"
HELP = f"""\
Chat with a model. Enter sends a message; Alt-Enter, or \\ before Enter, begins another line of it,
and what is pasted may have any lines. Through a pipe a line is a message. The answer streams to
standard output, in a terminal after the model's thoughts, dimmed. Ctrl-C stops an answer (under
torchrun it ends the chat), Ctrl-D ends. Sampling follows the checkpoint's generation_config.json.

  qwen35 chat --model demo --no-thinking
  qwen35 chat --model DIR --system "You are brief." --thinking-budget 500
  qwen35 chat --model DIR --tp 4
  torchrun --nproc-per-node 4 -m qwen35 chat --model DIR --tp 4

In the conversation:

{_COMMANDS}"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `qwen35 chat`."""
    option = parser.add_argument
    add_shared(parser, "model", required=True)
    add_shared(parser, "system", "thinking", "thinking_budget")
    add_shared(parser, "show_thoughts", "hide_thoughts", "template_arg", "reasoning_effort")
    add_shared(parser, "max_new_tokens", default=1024)
    add_shared(parser, "capacity", "context")
    option("--load", metavar="PATH", help="go on with a saved conversation")
    add_shared(parser, "dtype", "weights", "head", "adapter", "check_finite")
    add_shared(parser, "device", "compile", "segments")
    add_shared(parser, "tp", default=1)
    add_shared(parser, "timeout")
    add_sampling(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from ..generation.chat import sampling_defaults
    from .launch import launch

    screen_for(options)  # what is asked for in vain is said before the model is loaded
    sampling = sampling_from(options, sampling_defaults(options.model))
    with launch(options, options.device) as ranks:
        _chat(options, ranks, sampling)
    return 0


def _chat(options: argparse.Namespace, ranks: Launch, sampling: Sampling) -> None:
    """Loads the model in every process, and converses in the first."""
    from ..generation.chat import Chat
    from ..generation.engine import Engine
    from ..prompts.processor import Processor
    from ..prompts.tokenizer import Tokenizer
    from ..xla.progress import show_compilations
    from .launch import with_engine
    from .loading import load_params

    params = load_params(options, ranks)
    kind = Tokenizer if params.vision is None else Processor
    tokenizer = ranks.on_all_ranks(kind.from_pretrained, options.model)
    longest = params.config.max_context
    limit = longest if options.capacity is None else options.capacity
    # A person has time to type the first question; what is compiled must not be written across it.
    aside = sys.stdin.isatty() and params.runtime.mesh is None and not options.load
    engine = Engine(
        params,
        tokenizer,
        slots=1,
        capacity=min(1024, limit),
        max_capacity=limit,
        prefill_sizes=4,  # a person waits while each is compiled
        progress=ranks.prints and not aside,
    )

    def converse() -> None:
        chat = Chat(
            engine,
            tokenizer,
            system=options.system,
            thinking=options.thinking,
            thinking_tokens=options.thinking_budget,
            template=template_from(options),
            sampling=sampling,
            max_new_tokens=options.max_new_tokens,
        )
        # Before the first answer, and before the first question where nobody types that.
        with warming(engine, aside) as warm, show_compilations(aside):
            if options.load:
                chat.load(options.load)
            _converse(chat, screen_for(options), warm)

    with_engine(engine, converse)


def _converse(chat: Chat, screen: Screen, warm: Callable[[], None]) -> None:
    """Answers messages; `warm` waits until the engine can be used."""
    from ..generation.chat import ConversationFull

    images: list[Mapping[str, Any]] = []  # for the next question
    for line in messages():
        warm()
        try:
            _handle(chat, screen, line, images)
        except EOFError:
            return
        except ConversationFull as error:
            note(f"error: {error}: {_ROOM}")
        except (ValueError, OSError) as error:
            if screen.lost:  # no line that comes could be answered either
                raise
            note(f"error: {error}")
        except Exception as error:
            # A conversation is worth more than a line that failed, unless processes that were to
            # do the same have parted over it.
            if chat.engine.batch.params.runtime.mesh is not None:
                raise
            note(f"error: {type(error).__name__}: {error}")


def _handle(chat: Chat, screen: Screen, line: str, images: list[Mapping[str, Any]]) -> None:
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command in ("/image", "/save", "/load"):
        rest = _path(rest)
    if not command.startswith("/"):
        shown, images[:] = list(images), []
        _answer(chat, screen, chat.ask(line, shown))
    elif command == "/retry":
        chat.sampling = dataclasses.replace(chat.sampling, seed=chat.sampling.seed + 1)
        _answer(chat, screen, chat.retry())
    elif command == "/edit" and rest:
        _answer(chat, screen, chat.edit(rest))
    elif command == "/image" and rest:
        images.append(chat.read_image(rest))  # now, not when a question has been typed
    elif command == "/reset":
        images.clear()
        chat.reset()
    elif command == "/save" and rest:
        chat.save(rest)
        note(f"saved to {rest}")
    elif command == "/load" and rest:
        chat.load(rest)
        note(f"{sum(message['role'] == 'user' for message in chat.messages)} questions so far")
    elif command == "/thoughts":
        screen.thoughts = not screen.thoughts
        note("thoughts are " + ("shown" if screen.thoughts else "hidden"))
    elif command == "/exit":
        raise EOFError
    else:
        if command != "/help":
            known = command in _COMMANDS.split()
            note(f"{command} needs more than that" if known else f"{command} is no command")
        sys.stderr.write(_COMMANDS)


def _path(text: str) -> str:
    """Returns a path as a shell would: without the quotes around it, and with a home for ~."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return os.path.expanduser(text)


def _answer(chat: Chat, screen: Screen, request: Request) -> None:
    """Streams an answer until it ends or Ctrl-C is pressed."""
    reader, shown = chat.reader(request), 0
    with _interruption() as interrupted:
        while not request.done:
            for piece in chat.engine.step():
                shown += len(piece.text)
                for part in reader.push(piece.token, piece.text):
                    screen.show(part)
            if interrupted():
                if launched():  # torchrun ends all ranks then
                    raise KeyboardInterrupt
                chat.engine.cancel(request)
    for part in reader.finish(request.text[shown:]):
        screen.show(part)
    screen.end()
    if request.error is not None:
        note(f"error: {request.error}; /retry asks again")
        return
    chat.finish(request)
    completion = request.completion()
    if len(request.tokens) + len(request.new_tokens) >= chat.engine.max_capacity:
        note(f"the conversation is full: {_ROOM}")
    rate = completion.timings.tokens_per_second
    note(
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
