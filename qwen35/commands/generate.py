"""`qwen35 generate`: continues a prompt, or answers a message with pictures."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from .options import add_sampling, add_shared, sampling_from, template_from

if TYPE_CHECKING:
    from ..generation.results import Completion, Timings
    from ..prompts.processor import Processor, Prompt
    from ..prompts.tokenizer import Tokenizer
    from .launch import Launch

SUMMARY = "continue a prompt, or answer a question about pictures"
HELP = """\
Continue a prompt. Text streams to standard output as it is made.

  qwen35 generate --model demo --prompt "The capital of France is"
  echo "Once upon a time" | qwen35 generate --model DIR --prompt - --temperature 0.8 --seed 1
  qwen35 generate --model DIR --prompt "..." --json > result.json

As a message to which the model answers, in the checkpoint's chat format:

  qwen35 generate --model DIR --chat --prompt "Why is the sky blue?" --reasoning-effort low

With pictures, the prompt is always such a message:

  qwen35 generate --model DIR --image a.png --image b.jpg --prompt "What differs?"
  qwen35 generate --model DIR --video clip.mp4 --prompt "What happens?" --no-thinking

Split over four virtual devices, or over four processes:

  qwen35 generate --model DIR --prompt "..." --tp 4
  torchrun --nproc-per-node 4 -m qwen35 generate --model DIR --prompt "..." --tp 4
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `qwen35 generate`."""
    add_shared(parser, "model", required=True)
    parser.add_argument(
        "--prompt", required=True, metavar="TEXT", help="the prompt; - reads standard input"
    )
    for kind, needs in (("image", ""), ("video", "; needs pip install 'qwen35[video]'")):
        parser.add_argument(
            "--" + kind,
            action="append",
            default=[],
            metavar="FILE",
            help=f"show the model this {kind}, before the prompt; may be repeated{needs}",
        )
    add_shared(
        parser, "chat", "system", "thinking", "template_arg", "reasoning_effort", "max_new_tokens"
    )
    add_shared(parser, "dtype", "weights", "head", "device", "check_finite", "json")
    add_shared(parser, "tp", default=1)
    add_shared(parser, "timeout")
    add_sampling(parser, "0, or off")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from ..generation.sampling import Sampling
    from .launch import launch

    template = _template(options)
    sampling = sampling_from(options, Sampling())
    prompt = _read_prompt(options.prompt, alone=not (options.image or options.video))
    with launch(options, options.device) as ranks:
        tokenizer, seen = _prepare(ranks, options, prompt, template)
        completion = _generate(ranks, options, sampling, tokenizer, seen)
        if options.json:
            result = {
                "model": options.model,
                "prompt": prompt,
                "text": completion.text,
                "tokens": list(completion.tokens),
                "finish_reason": completion.finish_reason,
                "timings": dataclasses.asdict(completion.timings),
            }
            print(json.dumps(result, ensure_ascii=False))
        else:
            print(flush=True)
        if ranks.prints:
            ending = f"{len(completion.tokens)} tokens, {completion.finish_reason}"
            print(_timings(completion.timings, ending), file=sys.stderr)
    return 0


def _template(options: argparse.Namespace) -> dict[str, Any] | None:
    """Returns the chat template's variables where the prompt is a message, else None.

    Raises:
        ValueError: it is continued as it is, and there are options for messages.
    """
    template = template_from(options)
    if not options.thinking:
        template = {"enable_thinking": False} | template
    if options.chat or options.image or options.video:
        return template
    for name, given in (
        ("--no-thinking", not options.thinking),
        ("--system", options.system is not None),
        ("--template-arg and --reasoning-effort", bool(template)),
    ):
        if given:
            raise ValueError(f"{name} is for messages: give --chat to have the prompt answered")
    return None


def _prepare(
    ranks: Launch, options: argparse.Namespace, prompt: str, template: dict[str, Any] | None
) -> tuple[Tokenizer | Processor, str | Prompt]:
    """Reads all but the weights, which a bad picture needs not wait for: tokenizer and prompt."""
    from ..model.config import Config
    from ..prompts.processor import Processor, user_message
    from ..prompts.tokenizer import Tokenizer
    from ..sharding.process import check_equal_on_ranks

    pictures = bool(options.image or options.video)
    kind = Processor if pictures else Tokenizer
    tokenizer = ranks.on_all_ranks(kind.from_pretrained, options.model)
    seen = prompt
    if template is not None:
        messages = [user_message(prompt, options.image, options.video)]
        if options.system:
            messages.insert(0, {"role": "system", "content": options.system})
        answer = tokenizer if pictures else tokenizer.render
        seen = ranks.on_all_ranks(answer, messages, **template)
    if ranks.processes > 1:
        config = ranks.on_all_ranks(Config.from_pretrained, options.model)
        own = ("run", "model", "prompt", "device")  # may differ from rank to rank
        common = {name: value for name, value in vars(options).items() if name not in own}
        check_equal_on_ranks(config=config, prompt=prompt, options=common)
    return tokenizer, seen


def _generate(ranks: Launch, options, sampling, tokenizer, prompt) -> Completion:
    """Loads the model and continues the prompt, printing the text as it comes unless for JSON."""
    from ..files.checkpoint import load
    from ..generation.generate import stream

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
        vision=bool(options.image or options.video),
    )
    pieces = stream(
        params,
        tokenizer,
        prompt,
        max_new_tokens=options.max_new_tokens,
        sampling=sampling,
        progress=ranks.prints,
    )
    while True:
        try:
            piece = next(pieces)
        except StopIteration as stop:
            [completion] = stop.value
            return completion
        if not options.json:
            print(piece.text, end="", flush=True)


def _timings(timings: Timings, ending: str) -> str:
    rate = timings.tokens_per_second
    later = "" if rate is None else f", then {rate:.1f} tokens per second"
    return (
        f"time to first token {timings.first_token * 1e3:.0f} ms{later} "
        f"({ending}; compilation {timings.compile:.1f} s)"
    )


def _read_prompt(prompt: str, alone: bool) -> str:
    if prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is not UTF-8 text ({error})") from None
    if not prompt and alone:
        raise ValueError("the prompt is empty: at least one token is needed")
    return prompt
