"""Runs exported graphs in JAX's XLA (see `standalone`) and compares what they give with ours.

Ours is the model as torch computes it, operation by operation, of one device: of graphs for several
ranks the logits are compared, which are whole on every rank, and states are handed on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..reports.tables import markdown_table
from ..xla.progress import Bar, NoBar, progress_bar

# Of the largest value of an output. In float32 sums of other orders differ by 5e-6; a bfloat16 has
# 8 bits, and the layers round one after the other.
BOUNDS = {"float32": 2e-5, "bfloat16": 5e-2}
ENDINGS = ("hlo.pb", "stablehlo")  # both say the whole graph


@dataclass(frozen=True)
class Call:
    """A call of an exported graph.

    Attributes:
        phase: whose files these are.
        inputs: by path, what is not handed on from the call before.
        expected: by path, what some of its outputs should be, to be compared.
    """

    phase: str
    inputs: Mapping[str, torch.Tensor]
    expected: Mapping[str, torch.Tensor]


@dataclass
class Compared:
    """A phase of one file against ours, over all its calls.

    Attributes:
        phase, file: whose; "hlo.pb" or "stablehlo".
        calls: how many.
        difference: the largest of any output, as a part of that output's largest value.
        tokens, agreed: rows of logits, and those whose likeliest token is ours.
        faults: what disagrees, as sentences.
    """

    phase: str
    file: str
    calls: int = 0
    difference: float = 0.0
    tokens: int = 0
    agreed: int = 0
    faults: list[str] = field(default_factory=list)

    def add(
        self, call: Call, outputs: Mapping[str, torch.Tensor], ranks: int, bound: float
    ) -> None:
        """Compares the outputs of a call on each rank."""
        self.calls += 1
        for path, ours in call.expected.items():
            for rank in range(ranks):
                theirs = outputs[f"{rank}:{path}"]
                difference = relative_difference(theirs, ours)
                self.difference = max(self.difference, difference)
                if not difference <= bound:
                    self.faults.append(
                        f"{self.phase}.{self.file}, call {self.calls}: {path} of rank {rank} "
                        f"differs by {difference:.1e} of its largest value, allowed are {bound:.0e}"
                    )
                if path == "logits" and self.phase != "vision":
                    same = theirs.argmax(-1) == ours.argmax(-1)
                    self.tokens += same.numel()
                    self.agreed += int(same.sum())


def relative_difference(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    """Returns the largest difference as a part of our largest value; infinite where shapes or
    types, integers, or what is not finite differ."""
    if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
        return float("inf")
    if not ours.dtype.is_floating_point:
        return 0.0 if torch.equal(theirs, ours) else float("inf")
    theirs, ours = theirs.double(), ours.double()
    finite = ours.isfinite()
    if not torch.equal(theirs[~finite], ours[~finite]) or not theirs[finite].isfinite().all():
        return float("inf")
    difference = (theirs - ours)[finite].abs()
    if not difference.numel() or not difference.any():
        return 0.0
    largest = float(ours[finite].abs().max())
    return float(difference.max()) / largest if largest else float("inf")


def require_jax() -> None:
    """Raises a ValueError unless JAX is installed."""
    if importlib.util.find_spec("jax") is None:
        raise ValueError(
            "--run needs JAX, which is not installed: pip install 'qwen35[export-check]'"
        )


def compare(
    directory: Path,
    checkpoint: Path,
    calls: Sequence[Call],
    *,
    ranks: int,
    dtype: str,
    progress: bool = False,
) -> list[Compared]:
    """Runs the calls by each kind of exported file, weights read from the checkpoint.

    Args:
        directory: has the exported files of all phases.
        checkpoint: directory of safetensors files.
        calls: in order; a call's outputs are inputs of the later ones.
        ranks: of the graphs, each on a CPU device of JAX.
        dtype: of the model, whose `BOUNDS` count.
        progress: draw a bar on standard error.
    """
    phases = dict.fromkeys(call.phase for call in calls)
    results = {(e, p): Compared(p, e) for e in ENDINGS for p in phases}
    total = len(ENDINGS) * (len(phases) + len(calls))
    with progress_bar("run", total, "step", progress, leave=False) as bar:
        for ending in ENDINGS:
            with tempfile.TemporaryDirectory() as scratch:
                place = {"directory": str(directory.resolve()), "checkpoint": str(checkpoint)}
                job = place | {"ranks": ranks, "ending": ending}
                failure = _run(Path(scratch), job, calls, bar)
                for number, call in enumerate(calls[: job["ran"]]):
                    outputs = load_file(Path(scratch) / f"{number}.out.safetensors")
                    results[ending, call.phase].add(call, outputs, ranks, BOUNDS[dtype])
                if failure is not None:
                    phase, why = failure
                    results[ending, phase].faults.append(
                        f"{phase}.{ending} could not be run: {why}"
                    )
    return list(results.values())


def _run(
    scratch: Path, job: dict[str, Any], calls: Sequence[Call], bar: Bar | NoBar
) -> tuple[str, str] | None:
    """Runs a job in a process of its own; returns the phase that it failed in and why, or None.

    Notes in the job how many calls it `ran`.
    """
    job |= {"calls": [], "ran": 0}
    for number, call in enumerate(calls):
        inputs, outputs = (scratch / f"{number}.{side}.safetensors" for side in ("in", "out"))
        save_file({path: value.contiguous() for path, value in call.inputs.items()}, inputs)
        job["calls"].append({"phase": call.phase, "inputs": str(inputs), "outputs": str(outputs)})
    (scratch / "job.json").write_text(json.dumps(job))
    program = Path(__file__).with_name("standalone.py")
    with open(scratch / "errors", "w+") as errors:
        child = subprocess.Popen(
            [sys.executable, "-P", str(program), str(scratch / "job.json")],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        with child:
            for line in child.stdout:
                event = json.loads(line)
                if "why" in event:
                    return event["phase"], event["why"]
                job["ran"] += event["done"] == "run"
                bar.update(1)
        if child.returncode == 0:
            return None
        errors.seek(0)
        lines = errors.read().strip().splitlines()
    return calls[0].phase, lines[-1] if lines else f"exit code {child.returncode}"


def render(compared: Sequence[Compared]) -> str:
    """Renders the comparison as a Markdown table."""
    head = ("in JAX", "calls", "largest difference", "likeliest tokens", "")
    rows = [
        (
            f"{one.phase}.{one.file}",
            str(one.calls),
            f"{one.difference:.1e}",
            f"{one.agreed} of {one.tokens}" if one.tokens else "",
            "disagrees" if one.faults else "agrees" if one.calls else "not run",
        )
        for one in compared
    ]
    return markdown_table(head, rows)
