"""Tasks of lm-eval: finding them, running them on `Qwen35LM`, and what came of it."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from ..checks.values import integer
from ..reports.tables import markdown_table
from .lm_eval_model import Qwen35LM

FEWSHOT_SEED = 1234  # lm-eval's own
# Resamplings for standard errors that have no closed form; lm-eval's 100,000 take minutes.
_BOOTSTRAPS = 1000
_YAML = (".yaml", ".yml")


def find_tasks(names: Sequence[str], include: Sequence[str | Path] = ()) -> dict[str, Any]:
    """Loads tasks, and their documents, as lm-eval's `evaluate` takes them.

    Args:
        names: of tasks, groups and tags, with * and ? for several, or YAML files of tasks.
        include: directories with such files, to find names in. lm-eval's own tasks are looked
            through, which takes a while, only for names that are not there.

    Raises:
        ValueError: nothing of that name, or a task that can't be loaded, with the reason.
    """
    for directory in include:
        if not Path(directory).is_dir():
            raise ValueError(f"{directory}: no such directory, to look for tasks in")
    for name in names:
        if name.endswith(_YAML) and not Path(name).is_file():
            raise ValueError(f"{name}: no such file")
    with _only_errors():
        manager = TaskManager(include_path=list(include), include_defaults=False)
        if any(_needs_all(name, manager) for name in names):
            print("looking through lm-eval's own tasks ...", file=sys.stderr, flush=True)
            manager = TaskManager(include_path=list(include), include_defaults=True)
        found: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        for name in names:
            for spec in _matches(name, manager, include):
                try:
                    loaded = manager.load([spec])
                except Exception as error:  # whatever a task's file and functions may raise
                    raise ValueError(f"task {spec} can't be loaded: {_line(error)}") from error
                for part, entries in found.items():
                    entries.update(loaded[part])
    return found


def run_tasks(
    lm: Qwen35LM,
    tasks: dict[str, Any],
    *,
    fewshot: int | None = None,
    limit: int | None = None,
    chat: bool = False,
    system: str | None = None,
    samples: bool = False,
) -> dict[str, Any] | None:
    """Evaluates tasks; replicas of a mesh share the documents out, and the first has the result.

    Args:
        lm: the model.
        tasks: from `find_tasks`; used up.
        fewshot: examples before each question; None is as many as a task says, or none. As in
            lm-eval, it does not change a task that says 0.
        limit: documents of each task, the first ones; None is all.
        chat: put questions through the checkpoint's chat template, examples as turns.
        system: a system prompt.
        samples: keep every request and response.

    Returns:
        Plain values for JSON. `tasks` and `groups`, each a list of `name`, `documents`, `shots`,
        `version` and `metrics`: a list of `metric`, `filter`, `value`, `stderr` (or None) and
        `higher_is_better`. The settings. `seconds` of it all, compilation included. With
        `samples`, a list for each task's name. None on replicas but the first.

    Raises:
        ValueError: settings out of range, fewer documents than replicas, or a task asks for what
            the model can't do.
    """
    for name, value, least in (("fewshot", fewshot, 0), ("limit", limit, 1)):
        if value is not None:
            integer(name, value, least)
    start = time.perf_counter()
    for name, task in tasks["tasks"].items():
        documents = min(len(task.eval_docs), limit or sys.maxsize)
        if 0 < documents < lm.world_size:  # of which lm-eval refuses those that get none
            raise ValueError(
                f"task {name}: {documents} documents for dp = {lm.world_size} replicas; each "
                f"needs one: --dp {documents}, or more documents"
            )
        given = task.get_config("num_fewshot")
        if given is None or (fewshot is not None and given != 0):
            task.set_config(key="num_fewshot", value=fewshot or 0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    # lm-eval prints on standard output, which is the result's; and forks processes to resample,
    # which a process with an XLA device must not do.
    with contextlib.redirect_stdout(sys.stderr), _environment("DISABLE_MULTIPROC", "1"):
        results = evaluate(
            lm,
            tasks,
            limit=limit,
            bootstrap_iters=_BOOTSTRAPS,
            log_samples=samples,
            system_instruction=system,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    if results is None:
        return None
    settings = {"batch": lm.batch_size, "limit": limit, "chat": chat, "system": system}
    result = {
        **settings,
        "tasks": [_entry(name, results) for name in results["results"]],
        "groups": [_entry(name, results, "groups") for name in results.get("groups", ())],
        "seconds": time.perf_counter() - start,
    }
    names = {entry["name"] for entry in result["groups"]}
    result["tasks"] = [entry for entry in result["tasks"] if entry["name"] not in names]
    if samples:
        result["samples"] = {
            name: list(map(_sample, entries)) for name, entries in results["samples"].items()
        }
    return result


def render(result: Mapping[str, Any]) -> str:
    """Writes the result as a Markdown table and a sentence on how it was asked."""
    head = ("task", "shots", "documents", "metric", "filter", "value", "± standard error")
    arrows = {True: " ↑", False: " ↓", None: ""}
    rows = [
        (
            entry["name"],
            _text(entry["shots"]),
            _text(entry["documents"]),
            metric["metric"] + arrows[metric["higher_is_better"]],
            metric["filter"],
            _text(metric["value"]),
            _text(metric["stderr"]),
        )
        for entry in [*result["groups"], *result["tasks"]]
        for metric in entry["metrics"]
    ]
    asked = "in the checkpoint's chat template" if result["chat"] else "as plain text"
    if result["system"]:
        asked += ", after a system prompt"
    first = f" The first {result['limit']} documents of each task." if result["limit"] else ""
    table = markdown_table(head, rows, left=(0, 3, 4))
    return f"{table}\n\nQuestions are put {asked}.{first} ↑: higher is better."


def plots(result: Mapping[str, Any]) -> dict[str, Callable[[Any], None]]:
    """Draws per metric that several tasks have a bar for each, with the standard error where there
    is one."""
    bars: dict[str, list[tuple[str, dict]]] = {}
    for entry in result["tasks"]:
        for metric in entry["metrics"]:
            if isinstance(metric["value"], float):
                bars.setdefault(metric["metric"], []).append((entry["name"], metric))
    return {
        name: functools.partial(_plot, name, entries)
        for name, entries in bars.items()
        if len(entries) > 1
    }


def _plot(name: str, entries: list[tuple[str, dict]], axes: Any) -> None:
    values = [metric["value"] for _, metric in entries]
    errors = [metric["stderr"] or 0.0 for _, metric in entries]
    axes.barh([task for task, _ in entries], values, xerr=errors, height=0.6, capsize=3)
    axes.invert_yaxis()
    axes.set(xlabel=name)
    if all(0 <= value <= 1 for value in values):
        axes.set_xlim(0, 1)


def _needs_all(name: str, manager: TaskManager) -> bool:
    """Tells whether lm-eval's own tasks must be known: for a name of theirs, or a group of them."""
    if name.endswith(_YAML):
        return re.search(r"^group\s*:", Path(name).read_text("utf-8"), re.MULTILINE) is not None
    matches = manager.match_tasks([name])
    return not matches or not set(matches).isdisjoint(manager.all_groups)


def _matches(name: str, manager: TaskManager, include: Sequence[str | Path]) -> list[str]:
    if name.endswith(_YAML):
        return [name]
    if matches := manager.match_tasks([name]):
        return matches
    problem = f"no task is called {name}"
    if near := difflib.get_close_matches(name, manager.all_tasks, n=3):
        problem += f"; near are {', '.join(near)}"
    for file in (
        file for directory in include for file in sorted(Path(directory).glob("**/*.yaml"))
    ):
        try:
            load_yaml(file, resolve_func=False)
        except Exception as error:  # what lm-eval passes over in silence may be the task
            problem += f"; {file} can't be read: {_line(error)}"
    raise ValueError(problem)


def _entry(name: str, results: Mapping[str, Any], part: str = "results") -> dict[str, Any]:
    """Takes a task's part of lm-eval's results, whose keys are "metric,filter"."""
    values = results[part][name]
    better = results["higher_is_better"].get(name, {})
    metrics = []
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        error = values.get(f"{metric}_stderr,{kind}")
        metrics.append(
            {
                "metric": metric,
                "filter": kind,
                "value": _number(value),
                "stderr": _number(error) if isinstance(error, int | float) else None,
                "higher_is_better": better.get(metric),
            }
        )
    counts = results["n-samples"].get(name)
    return {
        "name": name,
        "documents": counts["effective"] if counts else values.get("sample_len"),
        "shots": results["n-shot"].get(name),
        "version": results["versions"].get(name),
        "metrics": metrics,
    }


def _sample(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Describes one document: what was asked, wanted and answered, and its metrics."""
    requests = entry["arguments"]
    return {
        "document": entry["doc_id"],
        "filter": entry["filter"],
        "requests": json.loads(json.dumps(requests, default=str)),
        "target": json.loads(json.dumps(entry["target"], default=str)),
        "responses": entry["filtered_resps"],
        "metrics": {name: _number(entry[name]) for name in entry["metrics"]},
    }


def _number(value: Any) -> Any:
    """Turns NumPy's numbers into Python's; what else a metric may be, as JSON has it."""
    if hasattr(value, "item"):
        value = value.item()
    return json.loads(json.dumps(value, default=str))


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _line(error: BaseException) -> str:
    """Puts what an exception says in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextlib.contextmanager
def _only_errors() -> Iterator[None]:
    """Silences lm-eval's notes on every default that a task leaves open; errors are still shown."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
