"""`qwen35 eval`: perplexity of texts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .params import Params
    from .report import Plots
    from .tokenizer import Tokenizer

HELP = """\
Measure a model. Results go to standard output; --output writes them as JSON and as a Markdown page
with plots.

  qwen35 eval perplexity --model demo --text README.md CONTRIBUTING.md
"""

_PERPLEXITY_HELP = """\
Perplexity and bits per byte of text files, each read from its beginning with the state carried
along; of one longer than the window, a sliding window. Every token is counted once.

  qwen35 eval perplexity --model demo --text README.md
  qwen35 eval perplexity --model DIR --text a.txt b.txt --window 2048 --output report
"""


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Declares what can be measured, each a command of its own."""
    commands = parser.add_subparsers(dest="measure", metavar="MEASURE", required=True)
    _add_perplexity(commands)


def _command(commands, name: str, summary: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("--model", required=True, metavar="DIR", help="checkpoint directory")
    option("--device", choices=("xla", "cpu"), default="xla", help="default: %(default)s")
    option("--no-check-finite", action="store_true", help="skip the scan for NaN and Inf")
    option("--json", action="store_true", help="print one JSON object instead of a table")
    option("--output", metavar="DIR", help="write the report into this directory")
    return parser


def _add_perplexity(commands) -> None:
    parser = _command(commands, "perplexity", "perplexity of texts", _PERPLEXITY_HELP)
    parser.set_defaults(run=_perplexity)
    option = parser.add_argument
    option("--text", required=True, nargs="+", metavar="FILE", help="UTF-8 text files")
    option("--window", type=int, metavar="N", help="tokens; default: 4096, or the model's limit")
    option("--stride", type=int, metavar="N", help="of the window; default: half of it")
    option("--prefix", default="", metavar="TEXT", help="before each text, not scored; for example "
           "'<|endoftext|>'. Without one a text's first token is not scored")  # fmt: skip
    option("--batch", type=int, default=1, metavar="N", help="windows at a time; %(default)s")
    option("--dtype", choices=("float32", "bfloat16"), default="float32", help="%(default)s")


def _perplexity(options: argparse.Namespace) -> int:
    from .perplexity import perplexity, render
    from .report import about

    texts = {name: _read(name) for name in options.text}
    tokenizer = _tokenizer(options)
    params = _load(options, options.dtype)
    result = about(options.model, params) | perplexity(
        params,
        tokenizer,
        texts,
        window=options.window,
        stride=options.stride,
        prefix=options.prefix,
        batch=options.batch,
        progress=True,
    )
    plots: Plots = {"nats by context": lambda axes: _plot_context(axes, result["by_context"])}
    return _hand_over(options, "perplexity", "Perplexity", result, render(result), plots)


def _plot_context(axes: Any, bins: list[dict]) -> None:
    axes.plot([entry["from"] for entry in bins], [entry["nats_per_token"] for entry in bins], "o-")
    axes.set(xscale="log", xlabel="tokens before the scored one", ylabel="nats per token")
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)


def _tokenizer(options: argparse.Namespace) -> Tokenizer:
    from . import Tokenizer

    return Tokenizer.from_pretrained(options.model)


def _load(options: argparse.Namespace, dtype: str) -> Params:
    from . import load

    return load(
        options.model,
        dtype=dtype,
        device=options.device,
        check_finite=not options.no_check_finite,
        progress=True,
    )


def _read(name: str) -> str:
    """A file's text, its line ends as they are: bits per byte counts them."""
    try:
        return Path(name).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text ({error})") from None


def _hand_over(
    options: argparse.Namespace, name: str, title: str, result: dict, text: str, plots: Plots
) -> int:
    """Prints a result and, if asked for, writes its report."""
    from .report import write_report

    print(json.dumps(result, ensure_ascii=False) if options.json else text)
    if options.output is not None:
        page, drawn = write_report(options.output, name, title, result, text, plots)
        missing = "" if drawn else " (without plots: matplotlib is not installed)"
        print(f"wrote {page} and {page.with_suffix('.json').name}{missing}", file=sys.stderr)
    return 0
