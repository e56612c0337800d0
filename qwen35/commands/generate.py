"""`qwen35 generate`: continues a prompt, or answers a message with pictures."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .chat_screen import screen_for
from .loading import asked_model
from .options import add_sampling, add_shared, sampling_from, template_from

if TYPE_CHECKING:
    from ..generation.results import Completion, Timings
    from ..generation.sampling_settings import Sampling
    from ..model.params import Params
    from ..prompts.processor import Processor, Prompt
    from ..prompts.tokenizer import Tokenizer
    from .launch import Launch

SUMMARY = "continue a prompt, or answer a question about pictures"
HELP = """\
Continue a prompt. Text streams to standard output as it is made.

  qwen35 generate --model demo --prompt "The capital of France is"
  echo "Once upon a time" | qwen35 generate --model DIR --prompt - --temperature 0.8 --seed 1
  qwen35 generate --model DIR --prompt "..." --json --logprobs 3 > result.json
  qwen35 generate --model DIR --prompt-file prompt.txt --greedy

Tokens are chosen as the checkpoint's generation_config.json recommends: for most at random, and
alike for the same --seed. As a message to be answered, in the checkpoint's chat format:

  qwen35 generate --model DIR --chat --prompt "Why is the sky blue?" --reasoning-effort low
  qwen35 generate --model DIR --chat --prompt "..." --thinking-budget 500 > answer.txt

A terminal shows the model's thought, dimmed, before the answer; what is no terminal gets the answer
alone, or the thought too with --show-thoughts; --json has it as reasoning_content.

With pictures, the prompt is always such a message:

  qwen35 generate --model DIR --image a.png --image b.jpg --prompt "What differs?"
  qwen35 generate --model DIR --video clip.mp4 --prompt "What happens?" --no-thinking

Split over four virtual devices, or over four processes:

  qwen35 generate --model DIR --prompt "..." --tp 4
  torchrun --nproc-per-node 4 -m qwen35 generate --model DIR --prompt "..." --tp 4
"""

_APART = ("reasoning_content", "tool_calls")  # what JSON has of an answer besides its text


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `qwen35 generate`."""
    add_shared(parser, "model", required=True)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument(
        "--prompt",
        metavar="TEXT",
        help="the prompt; - reads standard input, whose last line end is no part of it",
    )
    prompt.add_argument(
        "--prompt-file", metavar="FILE", help="a file with the prompt, read like standard input"
    )
    for kind, needs in (("image", ""), ("video", "; needs pip install 'qwen35[video]'")):
        parser.add_argument(
            "--" + kind,
            action="append",
            default=[],
            metavar="FILE",
            help=f"show the model this {kind}, before the prompt; may be repeated{needs}",
        )
    add_shared(parser, "chat", "system", "thinking", "thinking_budget")
    add_shared(parser, "show_thoughts", "hide_thoughts", "template_arg", "reasoning_effort")
    add_shared(parser, "max_new_tokens", "context")
    add_shared(parser, "dtype", "weights", "head", "adapter", "device", "compile", "segments")
    add_shared(parser, "check_finite", "json")
    add_shared(parser, "tp", default=1)
    add_shared(parser, "timeout")
    add_sampling(parser)
    add_shared(parser, "logprobs")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from ..generation.chat import sampling_defaults
    from .launch import launch

    template = _template(options)
    screen_for(options)  # what is asked for in vain is said before the model is loaded
    if options.logprobs is not None and not options.json:
        raise ValueError("--logprobs are a part of the result that --json prints")
    sampling = sampling_from(options, sampling_defaults(options.model))
    prompt = _read_prompt(options)
    with launch(options, options.device) as ranks:
        tokenizer, seen = _prepare(ranks, options, prompt, template, sampling)
        completion, said = _generate(ranks, options, sampling, tokenizer, seen, template)
        if options.json:
            result = {
                "model": asked_model(options),
                "prompt": prompt,
                "text": said["content"] or "",
                "tokens": list(completion.tokens),
                "finish_reason": completion.finish_reason,
                **{name: said[name] for name in _APART if name in said},
                "timings": dataclasses.asdict(completion.timings),
            }
            if completion.logprobs is not None:
                result["logprobs"] = [entry._asdict() for entry in completion.logprobs]
            print(json.dumps(result, ensure_ascii=False))
        if ranks.prints:
            ending = f"{len(completion.tokens)} tokens, {completion.finish_reason}"
            if "reasoning_content" in said and not (said["content"] or "tool_calls" in said):
                ending += " within the thought"
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
        ("--thinking-budget", options.thinking_budget is not None),
        ("--show-thoughts", options.show_thoughts),
        ("--hide-thoughts", options.hide_thoughts),
        ("--template-arg and --reasoning-effort", bool(template)),
    ):
        if given:
            raise ValueError(f"{name} is for messages: give --chat to have the prompt answered")
    return None


def _prepare(
    ranks: Launch,
    options: argparse.Namespace,
    prompt: str,
    template: dict[str, Any] | None,
    sampling: Sampling,
) -> tuple[Tokenizer | Processor, str | Prompt]:
    """Reads all but the weights, which a bad picture needs not wait for: tokenizer and prompt."""
    from ..model.config import Config
    from ..prompts.processor import Processor, user_message
    from ..prompts.tokenizer import Tokenizer
    from .launch import check_asked_alike

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
        read = {"config": config, "prompt": prompt, "sampling": sampling}
        if pictures:
            digest = hashlib.sha256(seen.images.patches.numpy().tobytes()).hexdigest()
            read["pictures"] = seen.images.grid, digest
        check_asked_alike(options, **read)
    return tokenizer, seen


def _generate(
    ranks: Launch,
    options: argparse.Namespace,
    sampling: Sampling,
    tokenizer: Tokenizer | Processor,
    prompt: str | Prompt,
    template: dict[str, Any] | None,
) -> tuple[Completion, dict[str, Any]]:
    """Loads the model and continues the prompt, printing the text as it comes unless for JSON.

    Returns:
        The completion, and its text as a message: of an answer thought and calls apart.
    """
    from ..generation.answers import AnswerReader, Part, message_of, thinking_budget
    from ..generation.generate import compile_steps, stream
    from ..xla.observers import Compilations
    from .loading import load_params

    words = getattr(tokenizer, "tokenizer", tokenizer)
    ids = words.encode(prompt) if isinstance(prompt, str) else prompt.tokens[0].tolist()
    reader = budget = None
    if template is not None:
        thinking = template.get("enable_thinking", True) is not False
        reader = AnswerReader(words, ids, thinking=thinking, tools=template.get("tools", ()))
        if options.thinking_budget is not None and thinking:
            budget = thinking_budget(words, options.thinking_budget)
    run = {
        "max_new_tokens": options.max_new_tokens,
        "sampling": sampling,
        "thinking": budget,
        "progress": ranks.prints,
    }
    compiled = Compilations()

    def compile_for(params: Params) -> None:
        nonlocal compiled
        compiled = compile_steps(params, tokenizer, prompt, **run)

    pictures = bool(options.image or options.video)
    params = load_params(options, ranks, vision=pictures, compile_for=compile_for)
    pieces = stream(params, tokenizer, prompt, **run)
    parts: list[Part] = []
    screen = screen_for(options)

    def take(new: list[Part]) -> None:
        parts.extend(new)
        for part in () if options.json else new:
            screen.show(part)

    try:
        while True:
            piece = next(pieces)
            raw = [Part("text", piece.text)]
            take(raw if reader is None else reader.push(piece.token, piece.text))
    except StopIteration as stop:
        [completion] = stop.value
        seconds = completion.timings.compile + compiled.seconds
        timings = dataclasses.replace(completion.timings, compile=seconds)
        completion = dataclasses.replace(completion, timings=timings)
    finally:
        screen.leave_thought()  # however it ends, a terminal is dim no longer
    take([] if reader is None else reader.finish())
    if not options.json:
        screen.end()
    return completion, message_of(parts)


def _timings(timings: Timings, ending: str) -> str:
    rate = timings.tokens_per_second
    later = "" if rate is None else f", then {rate:.1f} tokens per second"
    return (
        f"time to first token {timings.first_token * 1e3:.0f} ms{later} "
        f"({ending}; compilation {timings.compile:.1f} s)"
    )


def _read_prompt(options: argparse.Namespace) -> str:
    """Returns the prompt. `echo` and editors end a text with a line end that nobody means."""
    prompt, source = options.prompt, "standard input"
    if prompt is None or prompt == "-":
        if prompt is None:
            source, content = options.prompt_file, Path(options.prompt_file).read_bytes()
        else:
            content = sys.stdin.buffer.read()
        try:
            prompt = content.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise ValueError(f"{source} is not UTF-8 text ({error})") from None
    if not prompt and not (options.image or options.video):
        raise ValueError("the prompt is empty: at least one token is needed")
    return prompt
