"""`qwen35 eval`: perplexity of texts, tasks of lm-eval, agreement with transformers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks.choices import DTYPES
from ..checks.extras import check_installed
from .options import add_shared, positive, template_from
from .output import make_output, write_output

if TYPE_CHECKING:
    from ..reports.page import Plots
    from .launch import Launch

SUMMARY = "measure perplexity, tasks, agreement with transformers"
HELP = """\
Measure a model. Results go to standard output; --output writes them as JSON and as a Markdown page
with plots.

  qwen35 eval perplexity --model demo --text README.md CONTRIBUTING.md
  qwen35 eval tasks --model demo --tasks demo --include-path evals
  qwen35 eval agreement --model demo --reference transformers
  torchrun --nproc-per-node 8 -m qwen35 eval tasks --model DIR --tasks arc_easy --tp 4 --dp 2
"""

_PERPLEXITY_HELP = """\
Perplexity and bits per byte of text files, each read from its beginning with the state carried
along; of one longer than the window, a sliding window. Every token is counted once.

  qwen35 eval perplexity --model demo --text README.md
  qwen35 eval perplexity --model DIR --text a.txt b.txt --window 2048 --output report
"""

_TASKS_HELP = """\
Tasks of lm-eval, EleutherAI's evaluation harness (pip install 'qwen35[evals]'): names of its own
tasks, groups and tags, whose data it downloads, or YAML files, which may name local data. Those in
evals/ of the repository ask the demo checkpoint for what it has learnt, and download nothing.

  qwen35 eval tasks --model demo --tasks demo --include-path evals
  qwen35 eval tasks --model demo --tasks evals/demo_chat.yaml --chat --no-thinking
  qwen35 eval tasks --model DIR --tasks arc_easy 'mmlu_*' --num-fewshot 5 --output report
  qwen35 eval tasks --model DIR --tasks my_task.yaml --limit 20 --samples --json

With --chat, questions go through the checkpoint's chat template. A thinking model then thinks
before it answers, and the answer is what comes after "</think>"; tasks that compare likelihoods
need --no-thinking. `lm-eval ls tasks` lists names; `python -m qwen35.evaluation.harness run
--model qwen35` is lm-eval's own command line with this model in it.
"""

_AGREEMENT_HELP = """\
How far this package agrees with another implementation on the same checkpoint: the reference is
transformers in float32, on the CPU. Teacher-forced on what the reference writes: top-1 and top-5
overlap, the Kullback-Leibler divergence, the largest difference of a logit. Free-running: tokens
that both write alike before the first that differs. With bfloat16, transformers in bfloat16 is
compared too: what comes of rounding alone.

  qwen35 eval agreement --model demo --reference transformers
  qwen35 eval agreement --model DIR --dtype bfloat16 --prompts prompts.txt --output report
  qwen35 eval agreement --model DIR --adapter LORA

An adapter is merged by PEFT there, which needs pip install peft.
  qwen35 eval agreement --model DIR --dtype float32 --weights int4 --head int8
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what `qwen35 eval` can measure, each a command of its own."""
    commands = parser.add_subparsers(metavar="MEASURE", required=True)
    for name, summary, text, add, measure in (
        ("perplexity", "perplexity of texts", _PERPLEXITY_HELP, _add_perplexity, _perplexity),
        ("tasks", "tasks of lm-eval", _TASKS_HELP, _add_tasks, _tasks),
        ("agreement", "agreement with transformers", _AGREEMENT_HELP, _add_agreement, _agreement),
    ):
        command = commands.add_parser(
            name,
            help=summary,
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        # transformers, which is agreed with, computes eagerly whatever the device
        command.set_defaults(measure=measure, eager=name == "agreement")
        add_shared(command, "model", required=True)
        add(command)
        add_shared(command, "device", "compile", "segments")
        add_shared(command, "tp", default=1)
        add_shared(command, "dp", "timeout", "check_finite", "json", "output")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from .launch import launch

    with launch(options, options.device) as ranks:
        options.measure(options, ranks)
    return 0


def _add_perplexity(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--text", required=True, nargs="+", metavar="FILE", help="UTF-8 text files")
    option("--window", type=positive, metavar="N",
           help="tokens; default: 4096, or the model's limit")  # fmt: skip
    option("--stride", type=positive, metavar="N", help="of the window; default: half of it")
    option("--prefix", default="", metavar="TEXT", help="before each text, not scored; for example "
           "'<|endoftext|>'. Without one a text's first token is not scored")  # fmt: skip
    add_shared(parser, "batch", "dtype", "weights", "head", "adapter")


def _perplexity(options: argparse.Namespace, ranks: Launch) -> None:
    from ..evaluation.perplexity import perplexity, render
    from ..model.dtypes import name_of
    from ..prompts.tokenizer import Tokenizer
    from ..reports.page import about
    from .loading import load_params, model_name

    texts = ranks.on_all_ranks(lambda: {name: _read(name) for name in options.text})
    make_output(options)
    tokenizer = ranks.on_all_ranks(Tokenizer.from_pretrained, options.model)
    params = load_params(options, ranks, vision=False)
    result = about(model_name(options), name_of(params.dtype), ranks.device) | perplexity(
        params,
        tokenizer,
        texts,
        window=options.window,
        stride=options.stride,
        prefix=options.prefix,
        batch=options.batch,
        progress=ranks.prints,
    )
    if not ranks.prints:
        return
    plots: Plots = {}
    if len(result["by_context"]) > 1:
        plots = {"nats by context": lambda axes: _plot_context(axes, result["by_context"])}
    write_output(options, "perplexity", "Perplexity", result, render(result), plots)


def _plot_context(axes: Any, bins: list[dict]) -> None:
    axes.plot([entry["from"] for entry in bins], [entry["nats_per_token"] for entry in bins], "o-")
    axes.set(xscale="log", xlabel="tokens before the scored one", ylabel="nats per token")
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)


def _add_tasks(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--tasks", required=True, nargs="+", metavar="NAME", help="names or YAML files")
    option("--include-path", nargs="+", default=[], metavar="DIR", help="look for names in these "
           "directories first")  # fmt: skip
    option("--num-fewshot", type=int, metavar="N", help="examples before each question; default: "
           "the task's")  # fmt: skip
    option("--limit", type=positive, metavar="N", help="only the first documents of each task")
    add_shared(parser, "chat", "thinking", "system", "template_arg", "reasoning_effort")
    option("--max-length", type=positive, metavar="N", help="tokens; default: the model's limit")
    option("--samples", action="store_true", help="keep requests and responses in the JSON")
    add_shared(parser, "batch", default=8)
    add_shared(parser, "seed", "dtype", "weights", "head", "adapter")


def _tasks(options: argparse.Namespace, ranks: Launch) -> None:
    check_installed("lm_eval", "lm-eval", "evals")
    from ..evaluation.lm_eval_model import Qwen35LM
    from ..evaluation.tasks import find_tasks, plots, render, run_tasks
    from ..model.dtypes import name_of
    from ..prompts.tokenizer import Tokenizer
    from ..reports.page import about
    from .loading import load_params, model_name

    if not options.thinking and not options.chat:
        raise ValueError("--no-thinking is for --chat: without a chat template nothing thinks")
    template = template_from(options)
    if template and not options.chat:
        raise ValueError("--template-arg and --reasoning-effort are for --chat")
    thinking = options.thinking if options.chat else None
    tasks = find_tasks(options.tasks, options.include_path)
    make_output(options)
    tokenizer = ranks.on_all_ranks(Tokenizer.from_pretrained, options.model)
    params = load_params(options, ranks, vision=False)
    model = Qwen35LM(
        params,
        tokenizer,
        batch_size=options.batch,
        max_length=options.max_length,
        enable_thinking=thinking,
        chat_template_args=template,
        think_end_token="</think>" if thinking else None,
        seed=options.seed,
        progress=ranks.prints,
    )
    found = run_tasks(
        model,
        tasks,
        fewshot=options.num_fewshot,
        limit=options.limit,
        chat=options.chat,
        system=options.system,
        samples=options.samples,
    )
    if not ranks.prints:
        return
    dtype = name_of(model.params.dtype)
    result = about(model_name(options), dtype, ranks.device, "lm_eval") | found
    write_output(options, "tasks", "Tasks", result, render(result), plots(result))


def _add_agreement(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--reference", choices=("transformers",), default="transformers",
           help="what to compare with; default: %(default)s")  # fmt: skip
    option("--prompts", metavar="FILE", help="UTF-8 text, one a line; default: eight short ones")
    add_shared(parser, "max_new_tokens", default=32)
    option("--worst", type=positive, default=5, metavar="N",
           help="prompts to show; default: %(default)s")  # fmt: skip
    add_shared(parser, "dtype", nargs="+", choices=DTYPES, default=list(DTYPES),
               help="of weights and arithmetic; default: both")  # fmt: skip
    add_shared(parser, "weights", "head", "adapter")


def _agreement(options: argparse.Namespace, ranks: Launch) -> None:
    from ..evaluation.agreement import PROMPTS, measure
    from ..evaluation.agreement_page import plots, render
    from ..reports.page import about
    from .loading import check_segments, model_name

    texts = PROMPTS
    if options.prompts is not None:
        texts = [line for line in _read(options.prompts).splitlines() if line.strip()]
        if not texts:
            raise ValueError(f"{options.prompts} has no prompts: one a line is wanted")
    check_segments(options, ranks)
    make_output(options)
    dtypes = list(dict.fromkeys(options.dtype))
    result = measure(
        options.model,
        texts,
        dtypes=dtypes,
        weights=options.weights,
        head=options.head,
        adapter=options.adapter,
        max_new_tokens=options.max_new_tokens,
        device=ranks.device,
        runtime=ranks.runtime,
        check_finite=options.check_finite,
        progress=ranks.prints,
    )
    if not ranks.prints:
        return
    result = about(model_name(options), ", ".join(dtypes), ranks.device, options.reference) | result
    text = render(result, options.worst)
    write_output(options, "agreement", "Agreement", result, text, plots(result))


def _read(name: str) -> str:
    """Reads a file's text, its line ends as they are: bits per byte counts them."""
    try:
        return Path(name).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text ({error})") from None
