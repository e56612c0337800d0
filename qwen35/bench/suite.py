"""All measurements of a checkpoint: which jobs they take, and what comes of their runs."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable
from typing import Any

import torch

from ..model.config import Config
from ..model.declarations import axis_sizes
from ..model.segments import check_cut
from ..reports.page import Plots
from ..reports.provenance import processor_name, provenance
from ..sharding import layout
from ..sharding.mesh import Mesh
from ..version import __version__
from . import (
    host,
    images,
    images_report,
    machine,
    sampling,
    serving,
    serving_report,
    text,
    text_report,
)
from .processes import Job, alternate
from .records import medians, to_plain
from .settings import Settings

PARTS = {
    "ttft": "time to first token over prompt lengths",
    "tpot": "time per output token over contexts and batches",
    "throughput": "the engine: tokens per second over slots, and under random arrivals",
    "prefix": "what the engine's prefix cache saves",
    "sampling": "what an engine's step costs where tokens are drawn, over a greedy one",
    "host": "what an engine's step costs the host, and what starting it ahead gains",
    "memory": "memory of a process that decodes",
    "compile": "compilation of models of many narrow layers, and what a decode step costs the host",
    "images": "the vision tower, an image prompt's first token, memory, compilation",
}
_PROMPT = 32  # tokens, of requests that keep slots busy
_ONE_DEVICE = {"memory", "compile"}  # parts of one XLA device


def impossible(config: Config, ways: int, device: str) -> dict[str, str]:
    """Returns parts that can't be measured, each with the reason.

    Args:
        config: of the model.
        ways: ranks of all replicas.
        device: of each, "cpu" or "xla".
    """
    reasons = {}
    if config.vision is None:
        reasons["images"] = "the checkpoint has no vision tower"
    if device == "cpu":
        reasons["host"] = "on CPU tensors all of a step is the host's work"
    if ways > 1 or device == "cpu":
        reasons |= dict.fromkeys(_ONE_DEVICE, "measured on one XLA device only, not on ranks")
    return reasons


def measure(
    model: str,
    name: str,
    settings: Settings,
    say: Callable[[str], None],
    rank: int | None = None,
) -> dict[str, Any] | None:
    """Runs the measurements.

    Args:
        model: a checkpoint directory.
        name: what the report calls it.
        settings: what is measured.
        say: told what starts.
        rank: as for `alternate`.

    Returns:
        Plain values: `model`, `dtype`, `device`, `versions`, `provenance`, `machine`, `settings`,
        `parts` and, as they came, the `runs` of all jobs. None in all ranks but the first.

    Raises:
        ValueError: the checkpoint can't be used, or does not hold what is asked for.
    """
    config = Config.from_pretrained(model)
    check(config, settings)
    rounds, threads = settings.rounds, settings.threads
    runs = alternate(_jobs(model, settings), rounds=rounds, threads=threads, say=say, rank=rank)
    if rank:
        return None
    rates = to_plain(medians(runs["machine"]))
    return {
        "model": name,
        "dtype": "float32",
        "device": _device(settings, rank),
        "versions": _versions(settings.reference),
        "provenance": provenance(),
        "machine": rates | {"processor": processor_name(), "threads": settings.threads},
        "settings": dataclasses.asdict(settings),
        "parts": _parts(settings, runs),
        "runs": {name: list(map(to_plain, rounds)) for name, rounds in runs.items()},
    }


def check(config: Config, settings: Settings) -> None:
    """Refuses what would fail after minutes of other measurements.

    Raises:
        ValueError: an unknown part, or one that the model or its ranks can't do.
    """
    unknown = [part for part in settings.parts if part not in PARTS]
    if unknown or not settings.parts:
        raise ValueError(f"parts are {', '.join(PARTS)}; not {', '.join(unknown) or 'none'}")
    layout.check_split(axis_sizes(config.text_only()), Mesh(tp=settings.tp))
    for part, reason in impossible(config, settings.tp * settings.dp, settings.device).items():
        if part in settings.parts:
            raise ValueError(f"{part}: {reason}")
    _check_cut(config, settings)
    limit = config.max_context
    longest = {
        "ttft": max(settings.lengths),
        "tpot": max(settings.contexts) + settings.steps + 1,
        "throughput": sum(settings.request_tokens),
        "prefix": sum(settings.prefix_tokens) + 1,
        "sampling": _PROMPT + settings.steps,
        "host": _PROMPT + settings.steps,
        "memory": max(settings.lengths) + settings.steps,
    }
    for part, tokens in longest.items():
        if part in settings.parts and tokens > limit:
            raise ValueError(
                f"{part} needs {tokens} tokens, over the model's max_position_embeddings of {limit}"
            )


def _check_cut(config: Config, settings: Settings) -> None:
    """Refuses segments where a part would measure one graph of all layers.

    Raises:
        ValueError: the layers of a part can't be cut so, or nothing is compiled.
    """
    segments, parts = settings.segments, set(settings.parts)
    if segments != 1 and settings.device == "cpu":
        raise ValueError("segments cut what is compiled, and device cpu compiles nothing")
    if parts - {"compile"}:
        check_cut(config.layer_types, segments)
    if config.vision is not None and "images" in parts:
        blocks = ["block"] * config.vision.depth
        check_cut(blocks, segments, "images: the vision tower")
    for layers in settings.layers if "compile" in parts else ():
        check_cut(text.narrow_kinds(layers), segments, f"compile: a model of {layers} layers")


def _jobs(model: str, settings: Settings) -> dict[str, Job]:
    """Lists the jobs in the order in which they run: the two sides of a comparison in turn."""
    parts = settings.parts
    texts = {
        "model": model,
        "lengths": settings.lengths if "ttft" in parts else (),
        "contexts": settings.decodes if "tpot" in parts else (),
        "steps": settings.steps,
    }
    made = {"weights": settings.weights, "head": settings.head, "segments": settings.segments}
    placed = {"place": settings.place}
    busy = {"model": model, "prompt": _PROMPT, "steps": settings.steps}
    jobs = {"machine": Job(machine.measure_rates, {})}
    if "ttft" in parts or "tpot" in parts:
        jobs["text"] = Job(text.measure_ours, texts | placed, split=True)
        jobs["text, transformers"] = Job(text.measure_reference, texts)
    if "images" in parts:
        pictures = {"model": model, "sides": settings.sides, "repeats": 2}
        whole = {"place": settings.place | {"weights": None, "head": None}}
        jobs["images"] = Job(images.measure_ours, pictures | whole, split=True)
        jobs["images, transformers"] = Job(images.measure_reference, pictures)
    if "images" in parts and settings.one_device:
        large = {"model": model, "side": settings.large_side}
        cut = {"segments": settings.segments}
        jobs["images, memory"] = Job(images.measure_our_memory, large | cut, once=True)
        jobs["images, memory, transformers"] = Job(
            images.measure_reference_memory, large, once=True
        )
        jobs["images, compilation"] = Job(images.measure_compilation, large | cut, once=True)
    if "memory" in parts:
        filled = {"model": model, "lengths": settings.lengths, "steps": settings.steps}
        after = {"lengths": (), "contexts": ((max(settings.lengths), 1),)}
        jobs["memory"] = Job(text.measure_memory, filled | made, once=True)
        jobs["memory, transformers"] = Job(text.measure_reference, texts | after, once=True)
    if "compile" in parts:
        layers = {"layers": settings.layers, "segments": settings.segments}
        jobs["compile"] = Job(text.measure_compilation, layers, once=True)
    if "throughput" in parts:
        prompt, new_tokens = settings.request_tokens
        slots = {"slots": settings.slots}
        jobs["slots"] = Job(serving.measure_slots, busy | placed | slots, split=True)
        jobs["arrivals"] = Job(
            serving.measure_arrivals,
            {
                "model": model,
                "slots": max(settings.slots),
                "requests": settings.requests,
                "prompt": prompt,
                "new_tokens": new_tokens,
                "shares": settings.loads,
                "seed": settings.seed,
                **placed,
            },
            once=True,
            split=True,
        )
    if "prefix" in parts:
        shared, rest = settings.prefix_tokens
        same = {"model": model, "prefix": shared, "suffix": rest, "repeats": 1}
        jobs["prefix"] = Job(serving.measure_prefix, same | placed, split=True)
    if "sampling" in parts:
        few_and_many = sorted({min(settings.slots), max(settings.slots)})
        some = {"slots": few_and_many}
        jobs["sampling"] = Job(sampling.measure_draws, busy | placed | some, split=True)
    if "host" in parts:
        most = {"slots": max(settings.slots)}
        one = {"place": settings.place | {"tp": 1, "dp": 1}}
        jobs["host"] = Job(host.measure_host, busy | most | one)
        if settings.tp > 1:
            jobs["host, ranks"] = Job(host.measure_host, busy | most | placed, split=True)
    if not settings.reference:
        jobs = {name: job for name, job in jobs.items() if "transformers" not in name}
    return jobs


def _parts(settings: Settings, runs: dict[str, list[Any]]) -> dict[str, Any]:
    """Makes the rows of each part from the records of all rounds."""
    parts: dict[str, Any] = {}
    ours, theirs = runs.get("text", []), runs.get("text, transformers", [])
    if "ttft" in settings.parts:
        parts["ttft"] = text_report.ttft(ours, theirs)
    if "tpot" in settings.parts:
        parts["tpot"] = text_report.tpot(ours, theirs)
    if "throughput" in settings.parts:
        parts["throughput"] = serving_report.throughput(runs["slots"], runs["arrivals"])
    if "prefix" in settings.parts:
        parts["prefix"] = to_plain(medians(runs["prefix"]))
    if "sampling" in settings.parts:
        parts["sampling"] = sampling.rows(runs["sampling"])
    if "host" in settings.parts:
        split = {settings.tp: runs["host, ranks"]} if settings.tp > 1 else {}
        parts["host"] = serving_report.host({1: runs["host"]} | split)
    if "memory" in settings.parts:
        parts["memory"] = serving_report.memory(
            runs["memory"][0], runs.get("memory, transformers", [])
        )
    if "compile" in settings.parts:
        parts["compile"] = to_plain(runs["compile"][0])["models"]
    if "images" in settings.parts:
        rows = images_report.images(runs["images"], runs.get("images, transformers", []))
        parts["images"] = {"rows": rows, "memory": None, "compilation": None}
    if "images" in settings.parts and settings.one_device:
        parts["images"]["memory"] = images_report.memory(
            runs["images, memory"][0], runs.get("images, memory, transformers", [])
        )
        parts["images"]["compilation"] = to_plain(runs["images, compilation"][0])["sizes"]
    return parts


def render(result: dict[str, Any]) -> str:
    """Renders the result as Markdown."""
    parts, settings, rates = result["parts"], result["settings"], result["machine"]
    sections = [
        f"{rates['processor']}, {rates['threads']} threads: reads memory at "
        f"{rates['read_gbps']:.1f} GB/s, multiplies float32 matrices at "
        f"{rates['gemm_gflops']:.0f} GFLOP/s. {_rounds(settings['rounds'])} "
        "Ratios are transformers' time over this project's."
    ]
    if settings["tp"] > 1 and settings["device"] == "xla":
        sections.append(
            f"This project's figures are of {settings['tp']} ranks on virtual devices, which share "
            "these threads: they show what ranks cost, not what cores of their own would gain."
        )
    if settings["dp"] > 1:
        sections.append(
            f"{settings['dp']} replicas do the same at the same time. Figures are of the first."
        )
    if settings["weights"] or settings["head"]:
        sections.append(
            f"This project's text model was loaded with weights={settings['weights']!r} and "
            f"head={settings['head']!r}; transformers' is float32."
        )
    if settings["segments"] != 1:
        sections.append(f"This project's steps were cut: segments={settings['segments']!r}.")
    if "ttft" in parts:
        sections.append(text_report.render_ttft(parts["ttft"]))
    if "tpot" in parts:
        sections.append(text_report.render_tpot(parts["tpot"]))
    if "throughput" in parts:
        sections.append(serving_report.render_throughput(parts["throughput"]))
    if "prefix" in parts:
        sections.append(serving_report.render_prefix(parts["prefix"], *settings["prefix_tokens"]))
    if "sampling" in parts:
        sections.append(sampling.render(parts["sampling"]))
    if "host" in parts:
        sections.append(serving_report.render_host(parts["host"]))
    if "memory" in parts:
        sections.append(serving_report.render_memory(parts["memory"]))
    if "compile" in parts:
        sections.append(text_report.render_compilation(parts["compile"]))
    if "images" in parts:
        side = settings["large_side"]
        sections.append(images_report.render(side=side, **parts["images"]))
    return "\n\n".join(sections)


def _rounds(count: int) -> str:
    if count == 1:
        return "One round: how far others would lie apart is not known."
    return f"Medians of {count} rounds; spread is their highest less their lowest, over the median."


def plots(result: dict[str, Any]) -> Plots:
    """Returns the plots of all parts that have some."""
    parts = result["parts"]
    drawn = {**text_report.plots(parts), **serving_report.plots(parts)}
    if "images" in parts:
        drawn |= images_report.plots(parts["images"]["rows"])
    return drawn


def _device(settings: Settings, rank: int | None) -> str:
    name = "cpu" if settings.device == "cpu" else "xla:cpu"
    count = settings.tp * settings.dp
    if count == 1:
        return name
    return f"{name}, {count} {'virtual devices' if rank is None else 'processes'}"


def _versions(reference: bool) -> dict[str, str]:
    versions = {"qwen35": __version__, "torch": torch.__version__}
    if reference:
        from transformers import __version__ as transformers_version

        versions["transformers"] = transformers_version
    return versions | {"python": platform.python_version()}
