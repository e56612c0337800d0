"""Times this project and transformers side by side on the same random weights.

Both run one after the other in processes of their own, in alternation, so that a machine whose
speed wanders treats them alike. Prints a table on standard error and JSON on standard output.
`qwen35 bench` has the same measurements and more, as a report.

    scripts/benchmark.py                        # 0.8b, float32, 2 threads
    scripts/benchmark.py --preset 2b --rounds 5 --json results.json
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from qwen35.bench.checkpoints import random_checkpoint
from qwen35.bench.processes import Job, Runs, alternate
from qwen35.bench.statistics import medians, ratio
from qwen35.commands.bench import say

CONTEXTS = (128, 2048)
PROMPTS = (128, 512, 2048)
DECODE_STEPS = 48


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="0.8b", help="geometry; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="alternations; default: %(default)s")
    parser.add_argument("--model", metavar="DIR", help="a checkpoint instead of random weights")
    parser.add_argument("--json", metavar="FILE", help="also write the JSON to a file")
    options = parser.parse_args()
    # Unwinds, so that the running measurement and the random weights go too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="qwen35-benchmark-") as scratch:
        if options.model is None:
            say(f"making random weights of {options.preset}")
            random_checkpoint(options.preset, Path(scratch), vision=False)
        jobs = _jobs(options.model or scratch)
        runs = alternate(jobs, rounds=options.rounds, threads=options.threads, say=say)
    report = _report(runs, options)
    say(_table(report))
    text = json.dumps(report, indent=2)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    return 0


def _jobs(directory: str) -> dict[str, Job]:
    text = {
        "model": directory,
        "lengths": PROMPTS,
        "contexts": [(context, 1) for context in CONTEXTS],
        "steps": DECODE_STEPS,
    }
    return {
        "qwen35": Job("text.ours", text),
        "transformers": Job("text.reference", text),
        # What one run settles: no ratio of times.
        "memory": Job("text.memory", text, once=True),
        "compile": Job("text.compilation", {}, once=True),
    }


def _report(runs: dict[str, Runs], options: argparse.Namespace) -> dict:
    middle = {name: medians(results) for name, results in runs.items()}
    ours, theirs, memory = (middle[name] for name in ("qwen35", "transformers", "memory"))
    keys = [key for key in theirs if key != "memory_decode"]
    return {
        "model": options.model or options.preset,
        "threads": options.threads,
        "rounds": options.rounds,
        "ratios": {key: ratio(runs["qwen35"], runs["transformers"], key) for key in keys},
        "decode_share_of_bandwidth": ours["read_share_128"],
        "memory_over_weights_and_state": (memory["memory_decode"] - memory["memory_start"])
        / memory["weights_and_state"],
        "medians": middle,
        "runs": runs,
    }


def _table(report: dict) -> str:
    ours, theirs = report["medians"]["qwen35"], report["medians"]["transformers"]
    lines = [f"{'':<24}{'qwen35':>12}{'transformers':>14}{'ratio':>8}"]

    def row(name: str, key: str, scale: float, unit: str) -> None:
        other = f"{theirs[key] * scale:.1f} {unit}" if key in theirs else "-"
        ratio = f"{report['ratios'][key]:.2f}" if key in report["ratios"] else ""
        lines.append(f"{name:<24}{ours[key] * scale:>9.1f} {unit:<3}{other:>13}{ratio:>8}")

    row("load", "load", 1, "s")
    for key in ours:
        if key.startswith("compile"):
            row(key.replace("_", " "), key, 1, "s")
    for length in PROMPTS:
        row(f"prefill {length}", f"prefill_{length}", 1e3, "ms")
    for length in CONTEXTS:
        row(f"decode at {length}", f"decode_{length}", 1e3, "ms")
        row("  until it is on its way", f"host_{length}", 1e3, "ms")
        row("  the host's work", f"host_work_{length}", 1e3, "ms")
    memory, compilation = report["medians"]["memory"], report["medians"]["compile"]
    lines.append(
        f"{'memory at decode':<24}{memory['memory_decode'] / 1e9:>9.1f} GB "
        f"{theirs['memory_decode'] / 1e9:>10.1f} GB"
    )
    lines += [
        f"read bandwidth between decode steps at 128: {ours['read_gbps_128']:.1f} GB/s; a step "
        f"uses {report['decode_share_of_bandwidth']:.0%} of it",
        f"memory at decode, less the {memory['memory_start'] / 1e9:.2f} GB of the process before "
        f"loading, / (weights + state): {report['memory_over_weights_and_state']:.2f}",
        *(
            f"compile prefill + decode of {count} narrow layers: "
            f"{compilation[f'compile_prefill_{count}_layers']:.1f} + "
            f"{compilation[f'compile_decode_{count}_layers']:.1f} s; "
            f"the call of a decode step {compilation[f'host_{count}_layers'] * 1e3:.1f} ms"
            for count in (24, 64)
        ),
        f"compilations after warm-up: {ours['recompilations']:.0f}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
