"""The page, the JSON and the archive of `qwen35 neuron run`."""

from __future__ import annotations

import importlib.metadata
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files.aside import replaced
from ..graphs.roofline import PUBLISHED
from ..reports.page import Plots, about, write_report
from ..reports.tables import markdown_table
from . import run
from .check import Finding
from .check import render as render_findings
from .machine import Machine, describe
from .run import Entry
from .steps import STEPS, Settings

NAME = "neuron"  # of the page and the JSON
ARCHIVE = "neuron-run.tar.gz"
_LOG = 2**20  # bytes of a log's end that go into the archive


def write(
    output: Path,
    settings: Settings,
    machine: Machine,
    findings: Sequence[Finding],
    route: str,
    entries: Sequence[Entry],
) -> Path:
    """Writes page and JSON, then the archive, each as one switch; returns the page's path."""
    found = {entry.step: entry for entry in entries}
    result = about(
        settings.model or f"{settings.preset}, random weights", "bfloat16", where(machine)
    )
    result |= {
        "settings": vars(settings),
        "machine": describe(machine),
        "findings": [vars(finding) for finding in findings],
        "steps": [vars(found[step.name]) for step in STEPS if step.name in found],
        "published_by_others": [vars(entry) for entry in PUBLISHED],
    }
    text = _body(machine, list(findings), route, found)
    page, _ = write_report(output, NAME, "qwen35 neuron run", result, text, _plots(found))
    _pack(output)
    return page


def where(machine: Machine) -> str:
    """Says what it ran on: a machine without a device has run a stand-in, whatever its name."""
    if not machine.devices:
        return "no Neuron device: a stand-in"
    return f"{machine.instance or 'Neuron'}, {sum(d.cores for d in machine.devices)} logical cores"


def _body(machine: Machine, findings: list[Finding], route: str, found: dict[str, Entry]) -> str:
    parts = []
    if not machine.devices:
        parts.append("**This machine has no Neuron device. What ran is a stand-in for tests.**")
    rows = []
    for step in STEPS:
        entry = found.get(step.name)
        if entry is None:
            rows.append((step.title, "not reached", "-", ""))
        else:
            rows.append((step.title, entry.status, f"{entry.seconds:,.0f} s", entry.text))
    parts.append(markdown_table(("step", "came of it", "time", ""), rows, left=(0, 1, 3)))
    for step in STEPS:
        if step.name in found and (found[step.name].tests or found[step.name].figures):
            parts.append(
                f"## {step.title[0].upper()}{step.title[1:]}\n\n{_details(found[step.name])}"
            )
    parts.append(f"## The machine\n\n```\n{render_findings(findings, route)}\n```")
    return "\n\n".join(parts)


def _details(entry: Entry) -> str:
    parts = []
    if entry.tests:
        rows = [
            (test["name"], "passed" if test["passed"] else "**failed**", _number(test["error"]),
             _number(test["bound"]), test["text"])
            for test in entry.tests
        ]  # fmt: skip
        parts.append(markdown_table(("test", "", "error", "bound", ""), rows, left=(0, 1, 4)))
    if entry.figures:
        rows = [(name.replace("_", " "), _shown(value)) for name, value in entry.figures.items()]
        parts.append(markdown_table(("figure", "value"), rows))
    return "\n\n".join(parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plots(found: dict[str, Entry]) -> Plots:
    """Plots that the steps have figures for."""
    plots = {}
    tests = [
        (test["error"], test["bound"])
        for entry in found.values()
        for test in entry.tests
        if test["error"] is not None and test["bound"]
    ]
    if tests:
        plots["errors and bounds"] = lambda axes: _plot_errors(axes, tests)
    speed, sizes = (found[name].figures if name in found else None for name in ("speed", "buckets"))
    if speed:
        plots["time per token"] = lambda axes: _plot_tokens(axes, speed)
    if sizes and sizes["rows"]:
        plots["prefill by size of a step"] = lambda axes: _plot_sizes(axes, sizes["rows"])
    return plots


def _plot_errors(axes: Any, tests: Sequence[tuple[float, float]]) -> None:
    axes.scatter([bound for _, bound in tests], [max(e, 1e-12) for e, _ in tests], s=14)
    bounds = sorted({bound for _, bound in tests})
    axes.plot(bounds, bounds, "k--", label="bound")
    axes.set(xscale="log", yscale="log", xlabel="bound", ylabel="error")
    axes.legend()


def _plot_tokens(axes: Any, figures: dict[str, Any]) -> None:
    """This run's P50 of a token, and under it those that others published."""
    times = {"this run": 1e3 * figures["tpot"]}
    times |= {entry["source"]: entry["tpot"] for entry in figures["published_by_others"]}
    axes.barh([name[:40] for name in times], list(times.values()))
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds a token, P50; the others' as published")


def _plot_sizes(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    sizes = [row["size"] for row in rows]
    for name, field in (("a step", "seconds"), ("compiling it", "compile")):
        axes.plot(sizes, [row[field] for row in rows], "o-", label=name)
    axes.set(xscale="log", yscale="log", xlabel="tokens of a step", ylabel="seconds")
    axes.legend()


def _pack(output: Path) -> None:
    """Packs what someone else needs to judge the run: page, JSON, plots, journal, ends of logs."""
    names = sorted(
        path
        for path in output.iterdir()
        if path.name == run.JOURNAL
        or path.name.startswith(f"{NAME}.")
        or (path.suffix == ".png" and path.name.startswith(NAME))
    )
    with replaced(output / ARCHIVE) as target, tarfile.open(target, "w:gz") as archive:
        for path in names:
            archive.add(path, f"neuron-run/{path.name}")
        for log in run.logs(output):
            _add(archive, log.name, _end_of(log))
        lines = sorted(f"{d.name}=={d.version}" for d in importlib.metadata.distributions())
        _add(archive, "packages.txt", ("\n".join(lines) + "\n").encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(f"neuron-run/{name}")
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _end_of(file: Path) -> bytes:
    with open(file, "rb") as log:
        log.seek(max(0, file.stat().st_size - _LOG))
        return log.read()
