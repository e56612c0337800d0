"""`qwen35 neuron`: a machine with a Neuron device, looked over and tried out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .options import add_shared, positive

SUMMARY = "look over a machine with a Neuron device"
HELP = """\
What to do on the day a machine with a Neuron device is there.

  qwen35 neuron check     what is installed and what is missing, each with the line that mends it
  qwen35 neuron run       try everything out, step by step, and write a page to send

docs/neuron.md leads from a bare instance to the first token. This project has had no such machine:
what is said of it comes from AWS's documentation.
"""
_CHECK_HELP = """\
Look at versions, placeholders of the public package index, driver, runtime, devices, logical cores,
memory and environment variables, against the versions that belong together. Nothing is changed, and
no package of AWS's is imported.

  qwen35 neuron check
  qwen35 neuron check --json | jq '.findings[] | select(.level == "wrong")'
  qwen35 neuron check && qwen35 generate --device neuron --model DIR --prompt "Once upon"

Exit codes: 0 nothing has to be mended, 1 something has.
"""

_RUN_HELP = """\
Try everything out that can go wrong on a device, in rising order: arithmetic, each NKI kernel, the
portable form, whole models, and what takes how long. Each step is a process of its own with a time
limit; where one fails, or its compiler dies, the others go on.

  qwen35 neuron run --output report
  qwen35 neuron run --model DIR --tp 4 --output report --budget 240

--output (default: neuron-run) gets a page, the same as JSON, a log of each step and an archive of
all to send. The same command goes on where an earlier one ended: what passed on this machine, with
these versions, is not run again. Exit codes: 0 nothing failed, 1 something did.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what `qwen35 neuron` can do, each a command of its own."""
    commands = parser.add_subparsers(metavar="WHAT", required=True)
    command = commands.add_parser(
        "check",
        help="what is installed and what is missing",
        description=_CHECK_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(act=_check)
    command.add_argument(
        "--route",
        choices=("xla", "native"),
        help="xla: PyTorch/XLA, what this package runs on; native: TorchNeuron; default: that of "
        "the installed torch-neuronx, xla where there is none",
    )
    add_shared(command, "json")
    command = commands.add_parser(
        "run",
        help="try everything out, step by step, and write a page to send",
        description=_RUN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(act=_run)
    add_shared(command, "model")
    add_shared(command, "preset", default="0.8b")
    add_shared(command, "tp", default=1)
    command.add_argument("--budget", type=positive, metavar="MINUTES",
                         help="start nothing after that, and end what runs then")  # fmt: skip
    add_shared(command, "output")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    return options.act(options)


def _check(options: argparse.Namespace) -> int:
    from ..neuron import check, machine

    found = machine.read()
    route = options.route or check.route_of(found)
    findings = check.check(found, route)
    if options.json:
        print(json.dumps(check.report(found, findings, route)))
    else:
        print(check.render(findings, route))
    return 0 if check.ready(findings) else 1


def _run(options: argparse.Namespace) -> int:
    from ..neuron import check, machine, report, run
    from ..neuron.steps import Settings
    from ..xla.environment import check_neuron
    from .options import config_from

    check_neuron()
    config_from(options)  # that it can't be used is found before hours of compiling, not after
    root = Path(__file__).resolve().parents[2]
    demos = {name: str(path) if (path := root / name).is_dir() else None
             for name in ("demo", "demo_vision")}  # fmt: skip
    output, found = Path(options.output or "neuron-run").resolve(), machine.read()
    asked = {"model": options.model, "preset": options.preset, "tp": options.tp}
    settings = Settings(**asked, **demos, output=str(output))
    route = check.route_of(found)
    findings = check.check(found, route)
    say(check.render(findings, route))

    def write(entries: list[run.Entry]) -> None:
        report.write(output, settings, found, findings, route, entries)

    budget = None if options.budget is None else 60 * options.budget
    entries = run.run(settings, output, found, budget=budget, say=say, ended=write)
    page = report.write(output, settings, found, findings, route, entries)
    say(f"wrote {page}, {report.NAME}.json and {report.ARCHIVE}, the one to send")
    for entry in entries:
        print(f"{entry.status:7} {entry.step}{': ' if entry.text else ''}{entry.text}")
    return 0 if run.good(entries) else 1


def say(text: str) -> None:
    """Tells of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
