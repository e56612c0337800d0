"""The `qwen35` command.

Standard output carries results only; progress, timings and errors go to standard error. Exit
codes: 0 success, 2 bad input, 130 interrupted, 141 the reader has gone, 143 terminated.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from .bench import HELP as BENCH_HELP
from .bench import add_options as add_bench_options
from .chat import HELP, add_options
from .evaluate import HELP as EVAL_HELP
from .evaluate import add_commands

if TYPE_CHECKING:
    from .launch import Launch

_GENERATE_HELP = """\
Continue a prompt. Text streams to standard output as it is made.

  qwen35 generate --model demo --prompt "The capital of France is"
  echo "Once upon a time" | qwen35 generate --model DIR --prompt - --temperature 0.8 --seed 1
  qwen35 generate --model DIR --prompt "..." --json > result.json

With pictures, the prompt is a message to which the model answers, in the checkpoint's chat format:

  qwen35 generate --model DIR --image a.png --image b.jpg --prompt "What differs?"
  qwen35 generate --model DIR --video clip.mp4 --prompt "What happens?" --no-thinking
"""

_INFO_HELP = """\
Print what a model comes to: layers, parameters by kind, bytes of weights, of state per sequence
and of KV cache per token. Takes a checkpoint directory or a preset.

  qwen35 info demo
  qwen35 info 27b --dtype bfloat16 --json
  qwen35 info 27b --tp 8                    what each rank holds
  qwen35 info 27b --tp 8 --hardware trn2    and floors of TTFT and TPOT
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
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
    """SIGTERM ends the block like Ctrl-C: files written aside and child processes go with it."""
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qwen35",
        description="Qwen3.5 (gated DeltaNet + attention) on torch-xla.",
        epilog="`qwen35 COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"qwen35 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_generate(commands)
    _add_info(commands)
    add_options(_command(commands, "chat", "chat with a model", HELP))
    add_commands(_command(commands, "eval", "measure a model", EVAL_HELP))
    add_bench_options(_command(commands, "bench", "time this project and transformers", BENCH_HELP))
    return parser


def _command(commands, name: str, summary: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_generate(commands) -> None:
    parser = _command(commands, "generate", "continue a prompt", _GENERATE_HELP)
    parser.set_defaults(run=_generate)
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint directory")
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
    parser.add_argument(
        "--no-thinking",
        action="store_true",
        help="with pictures: answer without thinking first, where the chat format lets one choose",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the most likely token (default), above 0 samples",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the sampling; default: %(default)s"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s"
    )
    parser.add_argument(
        "--device",
        choices=("xla", "cpu"),
        help="xla compiles (default), cpu runs plain torch operations (default under torchrun)",
    )
    parser.add_argument(
        "--tp",
        type=int,
        default=1,
        metavar="N",
        help="split the model N ways: over virtual devices, or under "
        "`torchrun --nproc-per-node N -m qwen35 generate --tp N` over processes",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds that a process of torchrun waits for the others; default: %(default)s",
    )
    parser.add_argument(
        "--no-check-finite", action="store_true", help="skip the scan of weights for NaN and Inf"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object at the end instead of streaming text",
    )


def _generate(options: argparse.Namespace) -> int:
    from .launch import launch

    pictures = bool(options.image or options.video)
    if options.no_thinking and not pictures:
        raise ValueError("--no-thinking is for pictures: a prompt alone is continued as it is")
    prompt = _read_prompt(options.prompt, alone=not pictures)
    with launch(options.tp, options.device, options.timeout) as where:
        return _generate_on(where, options, prompt)


def _generate_on(where: Launch, options: argparse.Namespace, prompt: str) -> int:
    from ..files.checkpoint import load
    from ..generation.generate import stream
    from ..generation.sampling import Sampling
    from ..model.config import Config
    from ..prompts.processor import Processor, user_message
    from ..prompts.tokenizer import Tokenizer
    from ..sharding import process

    sampling = Sampling(temperature=options.temperature, seed=options.seed)
    together = process.together if where.processes > 1 else _call
    pictures = bool(options.image or options.video)
    tokenizer = together((Processor if pictures else Tokenizer).from_pretrained, options.model)
    seen = prompt
    if pictures:  # before the weights are read: a bad picture is found at once
        message = user_message(prompt, options.image, options.video)
        template = {"enable_thinking": False} if options.no_thinking else {}
        seen = together(tokenizer, [message], **template)
    if where.processes > 1:
        config = together(Config.from_pretrained, options.model)
        process.agree(config=config, prompt=prompt, options=_shared(options))
    params = together(
        load,
        options.model,
        dtype=options.dtype,
        device=where.device,
        runtime=where.runtime,
        check_finite=not options.no_check_finite,
        progress=where.speaks,
        vision=pictures,
    )
    pieces = stream(
        params,
        tokenizer,
        seen,
        max_new_tokens=options.max_new_tokens,
        sampling=sampling,
        progress=where.speaks,
    )
    while True:
        try:
            piece = next(pieces)
        except StopIteration as stop:
            [completion] = stop.value
            break
        if not options.json:
            print(piece.text, end="", flush=True)
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
    if not where.speaks:
        return 0
    timings = completion.timings
    rate = timings.tokens_per_second
    rate_text = "" if rate is None else f", then {rate:.1f} tokens per second"
    print(
        f"time to first token {timings.first_token * 1e3:.0f} ms{rate_text} "
        f"({len(completion.tokens)} tokens, {completion.finish_reason}; "
        f"compilation {timings.compile:.1f} s)",
        file=sys.stderr,
    )
    return 0


def _call(function, *args, **kwargs):
    return function(*args, **kwargs)


def _shared(options: argparse.Namespace) -> dict:
    """The options that all ranks must have alike."""
    own = ("run", "model", "prompt", "device")
    return {name: value for name, value in vars(options).items() if name not in own}


def _read_prompt(prompt: str, alone: bool) -> str:
    if prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is not UTF-8 text ({error})") from None
    if not prompt and alone:
        raise ValueError("the prompt is empty: at least one token is needed")
    return prompt


def _add_info(commands) -> None:
    parser = _command(commands, "info", "print a model's sizes", _INFO_HELP)
    parser.set_defaults(run=_info)
    parser.add_argument("model", metavar="DIR|PRESET", help="checkpoint directory or preset")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="default: %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--tp", type=int, metavar="N", help="show shapes and bytes of each of N ranks"
    )
    parser.add_argument(
        "--hardware", metavar="NAME", help="show floors of TTFT and TPOT on it (trn2)"
    )
    parser.add_argument(
        "--context", type=int, default=4096, metavar="N", help="KV cache tokens; %(default)s"
    )
    parser.add_argument(
        "--prompt-tokens", type=int, default=128, metavar="N", help="for TTFT; %(default)s"
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="default: %(default)s")


def _info(options: argparse.Namespace) -> int:
    from ..graphs import placement, roofline
    from ..graphs.summary import render, summarize
    from ..model.config import Config
    from ..model.params import as_dtype
    from ..model.presets import presets
    from ..sharding.mesh import Mesh

    name = options.model
    if name in presets and not Path(name).exists():
        config = presets[name]
    elif not Path(name).exists():
        known = ", ".join(presets)
        raise ValueError(f"{name}: no such directory, and no preset either (presets: {known})")
    else:
        config = Config.from_pretrained(name)
    summary = summarize(config, as_dtype(options.dtype))
    parts = [render(name, summary)]
    mesh = Mesh(tp=options.tp or 1)
    if options.tp is not None:
        placed = placement.describe(
            config, mesh, dtype=options.dtype, batch=options.batch, capacity=options.context
        )
        summary["ranks"] = placed.to_dict()
        parts.append(placed.render())
    if options.hardware is not None:
        summary["roofline"] = roofline.roofline(
            config,
            mesh,
            hardware=options.hardware,
            context=options.context,
            prompt=options.prompt_tokens,
            batch=options.batch,
            dtype=options.dtype,
        )
        parts.append(roofline.render(summary["roofline"]))
    print(json.dumps(summary) if options.json else "\n\n".join(parts))
    return 0
