"""Options that several commands share, each declared once; and the numbers that options take."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks.choices import DTYPES, KINDS
from ..checks.json_file import read_object

if TYPE_CHECKING:
    from ..generation.sampling_settings import Sampling
    from ..model.config import Config


def positive(text: str) -> int:
    """Converts an option's text to an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, not {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """Converts an option's text to a positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, not {text!r}")
    return value


def segments(text: str) -> int | str:
    """Converts an option's text to a number of segments, or "auto"."""
    if text != "auto" and (not text.isdecimal() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"must be a positive integer or auto, not {text!r}")
    return text if text == "auto" else int(text)


DTYPE_HELP = "of weights and arithmetic; default: %(default)s"  # where there is no "auto"

# What `add_argument` takes; an option is called by its name here, with - for _, unless it says.
_SHARED: dict[str, dict[str, Any]] = {
    "model": {"metavar": "DIR", "help": "checkpoint directory, or a hub's name (owner/name)"},
    "preset": {"metavar": "NAME", "help": "geometry, if no --model is given: 0.8b 2b 4b 9b 27b"},
    "dtype": {
        "type": lambda text: {"bf16": "bfloat16", "fp32": "float32"}.get(text, text),
        "choices": ("auto", *DTYPES),
        "default": "auto",
        "help": "of weights and arithmetic; default: %(default)s, the checkpoint's own",
    },
    "weights": {
        "choices": ("dense", *KINDS),
        "help": "quantise the text layers' matrices as they are read, or make dense ones of "
        "quantised; default: as the files have them",
    },
    "head": {
        "choices": KINDS,
        "help": "quantise the head too, and an embedding that is tied to it",
    },
    "adapter": {
        "metavar": "DIR",
        "help": "merge the LoRA adapter in this directory, in PEFT's form, into the weights",
    },
    "device": {
        "choices": ("cpu", "xla", "neuron"),
        "help": "xla compiles (default), neuron does so on a Neuron device or not at all, cpu runs "
        "plain torch operations (default under torchrun)",
    },
    "compile": {
        "metavar": "BACKEND",
        "help": "have a backend of torch.compile compile, such as inductor on the cpu (which needs "
        "a C++ compiler); default: XLA on xla, none on cpu",
    },
    "segments": {
        "type": segments,
        "default": 1,
        "metavar": "N|auto",
        "help": "cut a step's layers into N equal runs that share a compiled graph, auto where "
        "their kinds begin again; default: %(default)s, one graph",
    },
    "check_finite": {
        "flag": "--no-check-finite",
        "action": "store_false",
        "help": "skip the scan of weights for NaN and Inf",
    },
    "tp": {
        "type": positive,
        "metavar": "N",
        "help": "split the model over N ranks: virtual devices of XLA:CPU, or the processes of "
        "`torchrun --nproc-per-node N -m qwen35 ... --tp N`",
    },
    "dp": {
        "type": positive,
        "default": 1,
        "metavar": "N",
        "help": "replicas of the --tp ranks, each with its part of the work: N times as many "
        "devices, or processes of torchrun; default: %(default)s",
    },
    "timeout": {
        "type": seconds,
        "default": 60.0,
        "metavar": "S",
        "help": "seconds that a process of torchrun waits for the others; default: %(default)s",
    },
    "batch": {
        "type": positive,
        "default": 1,
        "metavar": "N",
        "help": "sequences that go through the model at a time; default: %(default)s",
    },
    "capacity": {
        "type": positive,
        "metavar": "N",
        "help": "tokens that the KV cache can hold, those of the prompt included",
    },
    "context": {
        "type": positive,
        "metavar": "N",
        "help": "tokens that there are to be positions for, prompt and answer; where the "
        "checkpoint's end before, YaRN stretches them",
    },
    "max_new_tokens": {
        "type": positive,
        "default": 128,
        "metavar": "N",
        "help": "the most tokens to write after a prompt; default: %(default)s",
    },
    "chat": {
        "action": "store_true",
        "help": "put the prompt, or a task's questions, through the checkpoint's chat template",
    },
    "system": {"metavar": "TEXT", "help": "the system prompt"},
    "thinking": {
        "flag": "--no-thinking",
        "action": "store_false",
        "help": "answer without thinking first, where the chat format lets one choose",
    },
    "thinking_budget": {
        "type": positive,
        "metavar": "N",
        "help": "close a thought of N tokens; default: none is closed",
    },
    "show_thoughts": {
        "action": "store_true",
        "help": "write thoughts to what is no terminal too, between <think> and </think>",
    },
    "hide_thoughts": {
        "action": "store_true",
        "help": "leave thoughts out in a terminal too",
    },
    "template_arg": {
        "action": "append",
        "default": [],
        "metavar": "NAME=VALUE",
        "help": "a variable of the chat template, its value JSON or else a text; may be repeated",
    },
    "reasoning_effort": {
        "metavar": "LEVEL",
        "help": "short for --template-arg reasoning_effort=LEVEL, where the template knows it",
    },
    "json_schema": {
        "metavar": "FILE",
        "help": "write JSON of this JSON schema, after the thought if there is one; needs "
        "pip install 'qwen35[structured]'",
    },
    "logprobs": {
        "type": int,
        "metavar": "N",
        "help": "report the log probability of each token, and the N likeliest at its place",
    },
    "seed": {
        "type": int,
        "default": 0,
        "metavar": "S",
        "help": "of everything that is drawn at random; default: %(default)s",
    },
    "json": {
        "action": "store_true",
        "help": "print one JSON object on standard output, at the end",
    },
    "output": {
        "metavar": "DIR",
        "help": "write a report into this directory too: JSON, and a Markdown page with plots",
    },
}

# The fields of `Sampling` that the command line has, besides the seed.
_SAMPLING: dict[str, dict[str, Any]] = {
    "temperature": {"type": float, "metavar": "T", "help": "0 takes the likeliest token"},
    "top_k": {"type": int, "metavar": "K", "help": "draw from the K likeliest tokens; 0: from all"},
    "top_p": {
        "type": float,
        "metavar": "P",
        "help": "draw from the likeliest tokens whose probabilities reach P",
    },
    "min_p": {
        "type": float,
        "metavar": "P",
        "help": "leave out tokens of less than P times the likeliest one's probability",
    },
    "repetition_penalty": {
        "type": float,
        "metavar": "X",
        "help": "divide positive logits of tokens that have occurred by X, multiply negative ones",
    },
    "presence_penalty": {
        "type": float,
        "metavar": "X",
        "help": "subtract X from the logits of tokens that were written",
    },
    "frequency_penalty": {
        "type": float,
        "metavar": "X",
        "help": "subtract X for each time that a token was written",
    },
    "stop": {
        "action": "append",
        "metavar": "TEXT",
        "help": "end where this text is written, and leave it out; may be repeated",
    },
    "ignore_eos": {
        "action": "store_true",
        "default": None,
        "help": "write on after the model's end tokens, as many tokens as asked for",
    },
}


def template_from(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the variables of the chat template that --template-arg, --reasoning-effort name.

    Raises:
        ValueError: one has no name, or is named twice.
    """
    template: dict[str, Any] = {}
    given = list(options.template_arg)
    if options.reasoning_effort is not None:
        given.append(f"reasoning_effort={json.dumps(options.reasoning_effort)}")
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--template-arg must be NAME=VALUE, not {text!r}")
        if name in template:
            raise ValueError(f"--template-arg {name} is given twice")
        try:
            template[name] = json.loads(value)
        except ValueError:
            template[name] = value
    return template


def add_shared(parser: argparse._ActionsContainer, *names: str, **changes: Any) -> None:
    """Adds options that several commands share.

    Args:
        parser: the command's, or a group of it.
        names: of the options, as attributes of the parsed options.
        changes: what `add_argument` gets in place of the shared declaration, such as a default of
            the command's own; of all `names`.
    """
    for name in names:
        _add(parser, name, _SHARED[name] | changes)


def config_from(options: argparse.Namespace) -> Config:
    """Returns the configuration of --model, or, where none is given, that of --preset.

    Raises:
        ValueError: it can't be used, or there is no such preset.
    """
    from ..files.checkpoint_files import config_of_files
    from ..model.presets import find_preset, presets

    if options.model is not None:
        return config_of_files(options.model)
    found = find_preset(options.preset)
    if found is None:
        raise ValueError(f"no preset {options.preset!r}; presets: {', '.join(presets)}")
    return presets[found]


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sampling_from`."""
    otherwise = "what the checkpoint's generation_config.json recommends"
    group = parser.add_argument_group("sampling", f"default: {otherwise}")
    add_shared(group, "json_schema")
    group.add_argument(
        "--greedy", action="store_true", help=f"take the likeliest token, not {otherwise}"
    )
    for name, settings in _SAMPLING.items():
        _add(group, name, settings)
    add_shared(group, "seed")


def sampling_from(options: argparse.Namespace, recommended: Sampling) -> Sampling:
    """Returns what the sampling options say, and of the rest what a checkpoint recommends.

    Raises:
        ValueError: a value is out of range, or there is a temperature for --greedy.
    """
    names = (*_SAMPLING, "seed", *(["logprobs"] if hasattr(options, "logprobs") else []))
    given = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    if options.json_schema is not None:
        given["json_schema"] = read_object(Path(options.json_schema), "a JSON schema")
    if options.greedy:
        if given.get("temperature"):
            raise ValueError("--greedy takes the likeliest token, at no --temperature")
        return type(recommended)(**given)
    return dataclasses.replace(recommended, **given)


def _add(parser: argparse._ActionsContainer, name: str, settings: dict[str, Any]) -> None:
    settings = dict(settings)
    flag = settings.pop("flag", "--" + name.replace("_", "-"))
    if settings.get("default") is not None and "default" not in settings["help"]:
        settings["help"] += "; default: %(default)s"
    parser.add_argument(flag, dest=name, **settings)
