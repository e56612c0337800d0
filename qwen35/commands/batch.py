"""`qwen35 batch`: a file of prompts to a file of answers."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .loading import asked_model
from .options import add_sampling, add_shared, positive, sampling_from, template_from

if TYPE_CHECKING:
    from ..files.journal import Journal, Place
    from ..generation.engine import Engine
    from ..generation.openai_form import Asked
    from ..generation.request import Request
    from ..generation.sampling_settings import Sampling
    from ..generation.thinking import ThinkingBudget
    from ..model.params import Params
    from ..prompts.processor import Processor
    from ..prompts.tokenizer import Tokenizer
    from ..sharding.drawing import Draws
    from .batch_lines import Entry, Line, Written
    from .launch import Launch

SUMMARY = "answer a file of prompts"
HELP = """\
Answer each line of a file: OpenAI's batch form (custom_id, method, url, body), an object with
messages or a prompt and what else such a body may have, or a JSON text, which is a prompt.

  qwen35 batch --model DIR in.jsonl out.jsonl --slots 16 --capacity 2048
  qwen35 batch --model DIR questions.jsonl out.jsonl --chat --system "You are brief."
  torchrun --nproc-per-node 8 -m qwen35 batch --model DIR in.jsonl out.jsonl --tp 4 --dp 2

An answer is a line of the output as soon as it is there, with the line's custom_id ("line-7" where
line 7 has none). The same command goes on where an earlier one ended, however that ended; lines in
error are tried again. At the end the output has the input's order. What a body leaves open is as
the options say. Under torchrun replicas draw their lines one by one, on several machines too, where
each needs the input and the model.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `qwen35 batch`."""
    option = parser.add_argument
    option("input", metavar="IN", help="JSON lines to answer")
    option(
        "results",
        metavar="OUT",
        help="JSON lines with the answers; one that is there is gone on with",
    )
    add_shared(parser, "model", required=True)
    add_shared(parser, "chat", "system", "thinking", "thinking_budget")
    add_shared(parser, "template_arg", "reasoning_effort")
    limit = "the most tokens to write after a prompt; default: what the capacity leaves"
    add_shared(parser, "max_new_tokens", default=None, help=limit)
    option("--slots", type=positive, default=8, metavar="N",
           help="of the engine; default: %(default)s")  # fmt: skip
    add_shared(parser, "capacity", default=4096)
    add_shared(parser, "context")
    add_shared(parser, "dtype", "weights", "head", "adapter", "device", "compile", "segments")
    add_shared(parser, "check_finite", "json")
    add_shared(parser, "tp", default=1)
    add_shared(parser, "dp", "timeout")
    add_sampling(parser)
    add_shared(parser, "logprobs")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from ..generation.chat import sampling_defaults
    from .batch_lines import read_lines
    from .launch import launch

    if options.system is not None and not options.chat:
        raise ValueError("--system is for --chat: messages have their own")
    sampling = sampling_from(options, sampling_defaults(options.model))
    template = template_from(options)
    if not options.thinking:
        template = {"enable_thinking": False} | template
    if Path(options.results).exists() and os.path.samefile(options.input, options.results):
        raise ValueError(f"{options.input} can't be the output too")
    lines, likely = read_lines(options.input)
    with launch(options, options.device) as ranks, ExitStack() as stack:
        work = _Work(options, ranks, lines, sampling, template)
        work.start(stack, max(likely, sampling.logprobs or 0))
        if work.left:
            work.run()
        if ranks.prints:
            work.end()
    return 0


class _Work:
    """The lines of a run: which are left, and the file that their answers go to.

    Attributes:
        left: places in `lines` of those that have no answer yet.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        ranks: Launch,
        lines: list[Line],
        sampling: Sampling,
        template: dict[str, Any],
    ) -> None:
        from .batch_progress import Progress

        self._options = options
        self._ranks = ranks
        self._lines = lines
        self._how = {"sampling": sampling, "template": template}
        self._how["max_new_tokens"] = options.max_new_tokens
        self._places: dict[str, Place] = {}  # of the answers, by custom_id
        self._journal: Journal[Written] | None = None
        self._source: BinaryIO
        self._engine: Engine
        self._settings = b""
        self._progress = Progress(len(lines), ranks.prints)
        self.left: list[int] = []

    def start(self, stack: ExitStack, likely: int) -> None:
        """Loads the model, and finds what is left to do.

        Args:
            stack: closes the files.
            likely: the most likely tokens that a line asks for.
        """
        from ..files.saved_state import fingerprint
        from ..generation.batch import check_slots
        from ..sharding import process

        options, ranks = self._options, self._ranks
        check_slots(options.slots, ranks.runtime)  # before the model, which takes longer
        self._check_alike()
        # Before the model too: that another process writes there, say.
        ranks.on_all_ranks(self._open, stack)
        params = self._load()
        if ranks.prints:
            how = {name: repr(value) for name, value in sorted(self._how.items())}
            how |= {"model": fingerprint(params)}
            names = ("chat", "system", "thinking_budget", "weights", "head", "adapter")
            how |= {name: getattr(options, name) for name in names}
            self._settings = hashlib.sha256(json.dumps(how).encode()).digest()
        found = ranks.on_all_ranks(self._compare)
        if ranks.processes > 1:
            found, self._settings = process.from_rank_0((found, self._settings))
        self.left = found
        if self.left:
            self._engine = self._make_engine(params, likely)

    def _check_alike(self) -> None:
        """Checks that all processes were asked for the same."""
        from .launch import check_asked_alike

        if self._ranks.processes > 1:
            digest = hashlib.sha256(b"".join(line.digest for line in self._lines)).hexdigest()
            sampling = self._how["sampling"]
            check_asked_alike(self._options, input=digest, sampling=sampling)

    def _open(self, stack: ExitStack) -> None:
        from ..files.journal import opened
        from .batch_lines import BEGINNING, written

        self._source = stack.enter_context(open(self._options.input, "rb"))
        if self._ranks.prints:
            path = Path(self._options.results)
            self._journal = stack.enter_context(opened(path, written, BEGINNING))

    def _load(self) -> Params:
        from ..generation.answers import thinking_budget
        from ..prompts.processor import Processor
        from ..prompts.tokenizer import Tokenizer
        from .loading import load_params

        options, ranks = self._options, self._ranks
        params = load_params(options, ranks)
        kind = Tokenizer if params.vision is None else Processor
        self._tokenizer: Tokenizer | Processor
        self._tokenizer = ranks.on_all_ranks(kind.from_pretrained, options.model)
        self._budget: ThinkingBudget | None = None
        if options.thinking_budget is not None:
            self._budget = thinking_budget(self._tokenizer, options.thinking_budget)
        return params

    def _make_engine(self, params: Params, likely: int) -> Engine:
        from ..generation import buckets
        from ..generation.engine import Engine

        options, mesh = self._options, params.runtime.mesh
        engines = mesh.dp if mesh is not None and params.runtime.rank is not None else 1
        return Engine(
            params,
            self._tokenizer,
            slots=options.slots,
            capacity=options.capacity,
            prefill_sizes=buckets.part_count(len(self.left) // engines),
            top_logprobs=likely,
            progress=self._ranks.prints,
        )

    def _compare(self) -> list[int]:
        """Returns the places of lines without an answer, in the process that writes.

        Raises:
            ValueError: the output has answers to other lines, or under other settings.
        """
        from .batch_lines import id_of

        options, journal = self._options, self._journal
        if journal is None:
            return []
        place_of = {line.key: place for place, line in enumerate(self._lines)}
        left = set(range(len(self._lines)))
        for place, found in journal.known:
            number = place_of.get(found.key)
            if number is None:
                raise ValueError(
                    f"{options.results} has an answer to {found.key!r}, which {options.input} does "
                    "not have: give another output"
                )
            if found.answered and found.id != id_of(self._lines[number], self._settings):
                raise ValueError(
                    f"{options.results} has an answer to {found.key!r} of another model, with "
                    f"other options or to another line than that of {options.input}: give another "
                    "output"
                )
            self._places[found.key] = place  # of several the last
            if found.answered:
                left.discard(number)
            else:
                left.add(number)
        return sorted(left)

    def run(self) -> None:
        """Answers what is left, in all processes."""
        from ..sharding.drawing import Draws
        from .launch import with_engine

        mesh, rank = self._ranks.runtime.mesh, self._ranks.runtime.rank
        draws = None
        if mesh is not None and mesh.dp > 1 and rank is not None and self._engine.leads:
            draws = Draws(mesh, rank, "batch")
        with_engine(self._engine, lambda: self._answer(draws))

    def _answer(self, draws: Draws | None) -> None:
        """Answers lines until none is left to draw."""
        from ..generation.feeding import feed

        sink: Callable[[bytes], None] = self._take
        if draws is not None and not self._ranks.prints:
            sink = draws.send
        self._engine.warm_up()
        self._progress.begin(len(self.left))  # what was compiled is no part of the rate
        try:
            for ended in feed(self._engine, self._jobs(draws)):
                for (line, entry), outcome in ended:
                    sink(self._report(line, entry, outcome))
                self._receive(draws)
            if draws is not None:
                draws.finish(self._take if self._ranks.prints else None)
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the store may have gone as well
                self._receive(draws)
            raise

    def _receive(self, draws: Draws | None) -> None:
        if draws is not None and self._ranks.prints:
            for content in draws.receive():
                self._take(content)
        self._progress.show()

    def _jobs(
        self, draws: Draws | None
    ) -> Iterator[tuple[tuple[Line, Entry | None], Callable[[], Request]]]:
        """Yields lines to answer, as they are drawn, each with a function that submits it."""
        from .batch_lines import digest_of, parse

        numbers = iter(range(len(self.left))) if draws is None else iter(draws.draw, None)
        for number in numbers:
            if number >= len(self.left):
                return
            line = self._lines[self.left[number]]
            self._source.seek(line.start)
            content = self._source.read(line.size)
            if digest_of(content) != line.digest:
                raise ValueError(
                    f"line {line.number} of {self._options.input} has changed meanwhile"
                )
            try:
                entry = parse(content)
            except ValueError as error:
                yield (line, None), _raiser(error)
                continue
            yield (line, entry), self._job(line, entry)

    def _job(self, line: Line, entry: Entry) -> Callable[[], Request]:
        from ..generation.openai_form import CHAT

        def submit() -> Request:
            asked = self._asked(line, entry)
            thinks = asked.url == CHAT and asked.template.get("enable_thinking", True)
            return self._engine.submit(
                asked.prompt,
                max_new_tokens=asked.max_new_tokens,
                sampling=asked.sampling,
                thinking=self._budget if thinks else None,
                template=asked.template,
            )

        return submit

    def _asked(self, line: Line, entry: Entry) -> Asked:
        from .batch_lines import asked_of

        return asked_of(entry, line, self._options.chat, self._options.system, **self._how)

    def _report(self, line: Line, entry: Entry | None, outcome: Request | Exception) -> bytes:
        """Returns what came of a line, as `_take` takes it."""
        from .batch_lines import answer, failure, id_of, refusal

        id, tokens = id_of(line, self._settings), 0
        if isinstance(outcome, Exception):
            result = refusal(line, entry, id, outcome)
        elif outcome.error is not None:
            result = failure(line, entry, id, outcome.error)
        else:
            tokens = len(outcome.new_tokens)
            named = {"model": self._name(entry), "created": int(time.time())}
            how = (entry.enveloped, id, self._asked(line, entry), outcome, self._tokenizer)
            result = answer(line, *how, **named)
        return json.dumps([line.key, tokens, result]).encode()

    def _name(self, entry: Entry) -> str:
        name = entry.body.get("model")
        if isinstance(name, str):
            return name
        asked = asked_model(self._options)
        return Path(asked).resolve().name if Path(asked).exists() else asked

    def _take(self, content: bytes) -> None:
        """Writes what came of a line, in the process that writes."""
        from .batch_lines import written

        assert self._journal is not None
        key, tokens, result = json.loads(content)
        self._places[key] = self._journal.add(result)
        self._progress.count(tokens, failed=not written(result).answered)

    def end(self) -> None:
        """Brings the answers into the input's order, and says what came of it."""
        assert self._journal is not None
        self._journal.rewrite([self._places[line.key] for line in self._lines])
        progress = self._progress
        progress.show(last=True)
        if self._options.json:
            print(json.dumps(progress.summary()))


def _raiser(error: Exception) -> Callable[[], Request]:
    def submit() -> Request:
        raise error

    return submit
