"""Times how long commands take to begin, and the stages of the demo's start.

    scripts/measure_start.py [--rounds 7] [--beside CHECKOUT] [--only demo] [--model DIR]

Each is a process of its own, in turn from round to round; with another checkout of the repository,
both take turns, but for the stages. Shown are medians of seconds, and of the processor's seconds,
which say more where others use the machine. The demo's time is that of its own process to the first
character of an answer, without scripts/demo's look whether the environment is there; with --model
also that of `qwen35 generate` of another checkpoint. Files are in the page cache after the round
that is not counted, but where a row says that they are on the disk: there they are dropped from it
before each run, and their processor's seconds hold no waiting.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "The capital of France is"


class Taken(NamedTuple):
    """Seconds, and seconds of processors."""

    seconds: float
    processor: float


Run = Callable[[Path], dict[str, Taken]]  # runs in a checkout; what was taken by stage


def main() -> None:
    """Parses the command line, times, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--beside", type=Path, help="another checkout to take turns with")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--model", type=Path, help="a checkpoint for `qwen35 generate`")
    parser.add_argument("--stages-of", type=Path, help=argparse.SUPPRESS)  # for a child of its own
    options = parser.parse_args()
    if options.stages_of is not None:
        print(json.dumps(stages(options.stages_of / "demo")))
        return
    checkouts = [ROOT] if options.beside is None else [options.beside.resolve(), ROOT]
    rows: dict[str, Run] = {
        "qwen35 --version": whole("-m", "qwen35", "--version"),
        "qwen35 --help": whole("-m", "qwen35", "--help"),
        "import torch": whole("-c", "import torch"),
        "import qwen35 and a name of it": whole("-c", "import qwen35; qwen35.load"),
        "demo to the first character": first_character,
        "demo by stages": by_stages,
    }
    if options.model is not None:
        model = options.model.resolve()
        rows["generate, files in memory"] = generating(model)
        rows["generate, files on the disk"] = generating(model, dropped=True)
    taken: dict[tuple[str, Path], list[Taken]] = collections.defaultdict(list)
    for number in range(options.rounds + 1):
        for name, run in rows.items():
            if options.only not in name:
                continue
            sides = [ROOT] if run is by_stages else checkouts
            for checkout in sides[:: 1 if number % 2 else -1]:
                for stage, one in run(checkout).items():
                    if number:
                        taken[f"{name}: {stage}" if stage else name, checkout].append(one)
    print("| what | checkout | s | processor s |\n|---|---|---|---|")
    for (name, checkout), several in taken.items():
        seconds, processor = map(statistics.median, zip(*several, strict=True))
        print(f"| {name} | {checkout} | {seconds:.2f} | {processor:.2f} |")


def environment(checkout: Path) -> dict[str, str]:
    """Returns one in which a checkout's package is imported."""
    return os.environ | {"PYTHONPATH": str(checkout)}


def processor_of_children() -> float:
    """Returns the processors' seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def until(command: list[str], checkout: Path, wait: Callable[[subprocess.Popen], object]) -> Taken:
    """Times a process of Python from its start until `wait` returns, and ends it then."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "env": environment(checkout)}
    before, start = processor_of_children(), time.perf_counter()
    with subprocess.Popen([sys.executable, *command], **how) as process:
        wait(process)
        seconds = time.perf_counter() - start
        process.kill()
    return Taken(seconds, processor_of_children() - before)


def whole(*arguments: str) -> Run:
    """Returns what times Python from its start to its end, with these arguments."""

    def end(process: subprocess.Popen) -> None:
        process.communicate()
        if process.returncode:
            raise RuntimeError(f"{arguments} ended with {process.returncode}")

    return lambda checkout: {"": until(list(arguments), checkout, end)}


def first_character(checkout: Path) -> dict[str, Taken]:
    """Times the demo to the first character of what it says."""
    command = [str(checkout / "scripts" / "run_demo.py"), PROMPT]
    return {"": until(command, checkout, first_of("the demo"))}


def first_of(name: str) -> Callable[[subprocess.Popen], None]:
    """Returns what waits until a process says something."""

    def read(process: subprocess.Popen) -> None:
        if not process.stdout.read(1):
            raise RuntimeError(f"{name} said nothing")

    return read


def generating(model: Path, dropped: bool = False) -> Run:
    """Returns what times `qwen35 generate` to the first character.

    Args:
        model: its checkpoint.
        dropped: have the system forget the checkpoint's files before.
    """
    command = ["-m", "qwen35", "generate", "--model", str(model), "--prompt", PROMPT]

    def run(checkout: Path) -> dict[str, Taken]:
        for file in model.glob("*.safetensors") if dropped else ():
            with open(file, "rb") as content:
                os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return {"": until(command, checkout, first_of("generate"))}

    return run


def by_stages(checkout: Path) -> dict[str, Taken]:
    """Times the stages that the demo goes through before it says something."""
    command = [sys.executable, __file__, "--stages-of", str(checkout)]
    how = environment(checkout) | {"BEGAN": str(time.time())}
    done = subprocess.run(command, env=how, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: Taken(*pair) for name, pair in found.items()}


def stages(model: Path) -> dict[str, tuple[float, float]]:
    """Does what the demo does to its first piece, and returns what each stage took."""
    found: dict[str, tuple[float, float]] = {}
    last = float(os.environ["BEGAN"]), 0.0

    def mark(name: str) -> None:
        nonlocal last
        now, known = (time.time(), time.process_time()), found.get(name, (0.0, 0.0))
        found[name] = known[0] + now[0] - last[0], known[1] + now[1] - last[1]
        last = now

    mark("Python starts")
    import torch  # noqa: F401 - its import is a stage

    mark("import torch")
    import qwen35

    qwen35.load  # noqa: B018 - the first public name imports them all
    mark("import qwen35")
    tokenizer = qwen35.Tokenizer.from_pretrained(model)
    mark("tokenizer, and import transformers")
    from qwen35.xla.devices import device_name
    from qwen35.xla.environment import set_cpu_flag
    from qwen35.xla.observers import CompileEvent, on_compile

    set_cpu_flag("xla_backend_optimization_level", "0")  # as the demo does
    device_name()
    mark("import torch-xla, and its device")
    params = qwen35.load(model, device="xla")
    mark("load")

    def compiled(event: CompileEvent) -> None:
        if event.phase in ("trace", "done"):
            mark("run" if event.phase == "trace" else f"compile {event.name.strip('_')}")

    with on_compile(compiled):
        next(qwen35.stream(params, tokenizer, PROMPT, max_new_tokens=160))
    mark("run")
    return found


if __name__ == "__main__":
    main()
