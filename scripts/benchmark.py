"""Times this project and transformers side by side on the same random weights.

Both run one after the other in processes of their own, in alternation, so that a machine whose
speed wanders treats them alike. Prints a table on standard error and JSON on standard output.

    scripts/benchmark.py                        # 0.8b, float32, 2 threads
    scripts/benchmark.py --preset 2b --rounds 5 --json results.json
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONTEXTS = (128, 2048)
PROMPTS = (128, 512, 2048)
DECODE_STEPS = 24


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="0.8b", help="geometry; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="alternations; default: %(default)s")
    parser.add_argument("--model", metavar="DIR", help="a checkpoint instead of random weights")
    parser.add_argument("--json", metavar="FILE", help="also write the JSON to a file")
    parser.add_argument("--worker", choices=tuple(WORKERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options.model)))
        return 0
    with tempfile.TemporaryDirectory(prefix="qwen35-benchmark-") as scratch:
        directory = options.model or _random_checkpoint(options.preset, Path(scratch))
        results = _alternate(directory, options.threads, options.rounds)
    report = _report(results, options)
    print(_table(report), file=sys.stderr)
    text = json.dumps(report, indent=2)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    return 0


def _random_checkpoint(preset: str, directory: Path) -> str:
    import qwen35

    _say(f"making random weights of {preset}")
    qwen35.save(qwen35.init_params(qwen35.presets[preset].text_only()), directory)
    return str(directory)


def _alternate(directory: str, threads: int, rounds: int) -> dict[str, list[dict[str, Any]]]:
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in WORKERS}
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "NPROC": str(threads),
        "HF_HUB_OFFLINE": "1",
    }
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    for number in range(rounds):
        for name in WORKERS:
            if number and name in ONCE:
                continue
            _say(f"round {number + 1} of {rounds}: {name}")
            command = [sys.executable, __file__, "--worker", name, "--model", directory]
            output = subprocess.run(
                ["taskset", "-c", cores, *command],
                env=environment,
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
            results[name].append(json.loads(output.splitlines()[-1]))
    return results


def _bandwidth() -> dict[str, Any]:
    """The machine's read bandwidth: the best of several sums over 1 GiB."""
    import torch

    data = torch.ones(2**28)
    times = [_timed(lambda: data.sum().item()) for _ in range(10)]
    return {"read_gbps": data.nbytes / min(times) / 1e9}


def _ours(directory: str) -> dict[str, Any]:
    import torch

    import qwen35
    from qwen35.pytree import map_tensors

    result: dict[str, Any] = {}
    qwen35.device_put(torch.zeros(1), "xla").cpu()  # starts the device
    start = time.perf_counter()
    params = qwen35.load(directory, device="xla", check_finite=False)
    result["load"] = time.perf_counter() - start
    prefill = qwen35.jit(qwen35.prefill, donate=("state",))
    decode = qwen35.jit(qwen35.decode, donate=("state",))
    fill = functools.partial(_fill, prefill, params)
    tokens = torch.randint(0, params.config.vocab_size, (1, max(PROMPTS)))
    token = qwen35.device_put(tokens[:, 0].contiguous(), "xla")
    for length in PROMPTS:
        state = qwen35.init_state(params, 1, length + DECODE_STEPS)
        start = time.perf_counter()
        state = fill(state, tokens[:, :length])
        result[f"first_prefill_{length}"] = time.perf_counter() - start
        start = time.perf_counter()
        logits, state = decode(params, state, token)
        logits.cpu()
        result[f"first_decode_{length}"] = time.perf_counter() - start
    compiled = prefill.compile_count + decode.compile_count

    for length in PROMPTS:
        times = []
        for _ in range(_repeats(length)):
            state = qwen35.init_state(params, 1, length + DECODE_STEPS)
            map_tensors(lambda t: t.cpu(), state)
            start = time.perf_counter()
            state = fill(state, tokens[:, :length])
            times.append(time.perf_counter() - start)
        result[f"prefill_{length}"] = statistics.median(times)
        if length not in CONTEXTS:
            continue
        times, host = [], []
        for _ in range(DECODE_STEPS):
            start = time.perf_counter()
            logits, state = decode(params, state, token)
            host.append(time.perf_counter() - start)
            logits.cpu()
            times.append(time.perf_counter() - start)
        result[f"decode_{length}"] = statistics.median(times)
        result[f"host_{length}"] = statistics.median(host)
    for length in PROMPTS:
        first = result.pop(f"first_prefill_{length}")
        result[f"compile_prefill_{length}"] = first - result[f"prefill_{length}"]
        first = result.pop(f"first_decode_{length}")
        result[f"compile_decode_{length}"] = first - result.get(f"decode_{length}", 0)
    result["recompilations"] = prefill.compile_count + decode.compile_count - compiled
    # Decode reads every weight once but the embedding's rows that no token of the step names.
    head = params.head.nbytes if params.embed is None else params.embed.nbytes
    weights = sum(leaf.nbytes for leaf in _leaves(params))
    result["read_bytes"] = weights - (0 if params.embed is None else head)
    return result


def _memory(directory: str) -> dict[str, Any]:
    """What a process adds that loads, prefills the longest prompt and decodes."""
    import torch

    import qwen35

    qwen35.device_put(torch.zeros(1), "xla").cpu()
    start = _anonymous_memory()
    params = qwen35.load(directory, device="xla", check_finite=False)
    prefill = qwen35.jit(qwen35.prefill, donate=("state",))
    decode = qwen35.jit(qwen35.decode, donate=("state",))
    state = qwen35.init_state(params, 1, max(PROMPTS) + DECODE_STEPS)
    tokens = torch.randint(0, params.config.vocab_size, (1, max(PROMPTS)))
    state = _fill(prefill, params, state, tokens)
    token = qwen35.device_put(tokens[:, 0].contiguous(), "xla")
    most = 0
    for _ in range(DECODE_STEPS):
        logits, state = decode(params, state, token)
        most = max(most, _anonymous_memory())  # while the step runs
        logits.cpu()
        most = max(most, _anonymous_memory())
    needed = sum(leaf.nbytes for tree in (params, state) for leaf in _leaves(tree))
    return {"memory_start": start, "memory_decode": most, "weights_and_state": needed}


def _fill(prefill, params, state, tokens):
    """Prefills in the steps that `generate` takes, and waits for the end."""
    import qwen35
    from qwen35.generate import PREFILL_CHUNK

    for start in range(0, tokens.shape[1], PREFILL_CHUNK):
        chunk = tokens[:, start : start + PREFILL_CHUNK].contiguous()
        logits, state = prefill(params, state, qwen35.device_put(chunk, "xla"))
    logits.cpu()
    return state


def _compile(_: str) -> dict[str, Any]:
    """Seconds to compile prefill and decode of many layers; narrow ones, which take as long."""
    import dataclasses

    import torch

    import qwen35
    from qwen35.generate import PREFILL_CHUNK

    result = {}
    for count in (24, 64):
        kinds = tuple("full_attention" if i % 4 == 3 else "linear_attention" for i in range(count))
        sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 1024, "vision": None}
        config = dataclasses.replace(
            qwen35.presets["0.8b"], num_hidden_layers=count, layer_types=kinds, **sizes
        )
        params = qwen35.init_params(config, device="xla")
        state = qwen35.init_state(params, 1, max(PROMPTS))
        tokens = qwen35.device_put(torch.zeros(1, PREFILL_CHUNK, dtype=torch.int64), "xla")
        for step, token in ((qwen35.prefill, tokens), (qwen35.decode, tokens[:, 0])):
            start = time.perf_counter()
            qwen35.jit(step, donate=("state",)).compile(params, state, token)
            result[f"compile_{step.__name__}_{count}_layers"] = time.perf_counter() - start
    return result


def _transformers(directory: str) -> dict[str, Any]:
    import torch
    from transformers import Qwen3_5ForCausalLM

    result: dict[str, Any] = {}
    start = time.perf_counter()
    model = Qwen3_5ForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    result["load"] = time.perf_counter() - start
    tokens = torch.randint(0, model.config.vocab_size, (1, max(PROMPTS)))
    with torch.no_grad():
        model(tokens[:, :16], use_cache=True, logits_to_keep=1)
        for length in PROMPTS:
            times = []
            for _ in range(_repeats(length)):
                start = time.perf_counter()
                output = model(tokens[:, :length], use_cache=True, logits_to_keep=1)
                times.append(time.perf_counter() - start)
            result[f"prefill_{length}"] = statistics.median(times)
            if length not in CONTEXTS:
                continue
            cache, times = output.past_key_values, []
            for _ in range(DECODE_STEPS):
                start = time.perf_counter()
                model(tokens[:, :1], past_key_values=cache, use_cache=True)
                times.append(time.perf_counter() - start)
            result[f"decode_{length}"] = statistics.median(times)
            result["memory_decode"] = _anonymous_memory()
    return result


WORKERS = {
    "bandwidth": lambda _: _bandwidth(),
    "qwen35": _ours,
    "transformers": _transformers,
    "memory": _memory,
    "compile": _compile,
}
# What one run settles: no ratio of times.
ONCE = ("memory", "compile")


def _report(results: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> dict:
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in results.items()
    }
    ours, theirs, memory = (medians[name] for name in ("qwen35", "transformers", "memory"))
    ratios = {
        key: statistics.median(
            b[key] / a[key] for a, b in zip(results["qwen35"], results["transformers"], strict=True)
        )
        for key in theirs
        if key != "memory_decode"
    }
    speed = ours["read_bytes"] / ours["decode_128"] / 1e9
    return {
        "model": options.model or options.preset,
        "threads": options.threads,
        "rounds": options.rounds,
        "ratios": ratios,
        "decode_share_of_bandwidth": speed / medians["bandwidth"]["read_gbps"],
        "memory_over_weights_and_state": (memory["memory_decode"] - memory["memory_start"])
        / memory["weights_and_state"],
        "medians": medians,
        "runs": results,
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
        row("  of that the host's", f"host_{length}", 1e3, "ms")
    memory, compilation = report["medians"]["memory"], report["medians"]["compile"]
    lines.append(
        f"{'memory at decode':<24}{memory['memory_decode'] / 1e9:>9.1f} GB "
        f"{theirs['memory_decode'] / 1e9:>10.1f} GB"
    )
    read = report["medians"]["bandwidth"]["read_gbps"]
    lines += [
        f"read bandwidth {read:.1f} GB/s; decode at 128 uses "
        f"{report['decode_share_of_bandwidth']:.0%} of it",
        f"memory at decode, less the {memory['memory_start'] / 1e9:.2f} GB of the process before "
        f"loading, / (weights + state): {report['memory_over_weights_and_state']:.2f}",
        *(
            f"compile prefill + decode of {count} narrow layers: "
            f"{compilation[f'compile_prefill_{count}_layers']:.1f} + "
            f"{compilation[f'compile_decode_{count}_layers']:.1f} s"
            for count in (24, 64)
        ),
        f"compilations after warm-up: {ours['recompilations']:.0f}",
    ]
    return "\n".join(lines)


def _repeats(length: int) -> int:
    return max(2, 768 // length)


def _timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _leaves(tree) -> list:
    from torch.utils import _pytree as pytree

    return pytree.tree_leaves(tree)


def _anonymous_memory() -> int:
    """Bytes of this process that are no file's pages."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon line")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
