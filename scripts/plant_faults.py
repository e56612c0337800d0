#!/usr/bin/env python
"""Plant faults in copies of the tree, one at a time, and see whether the tests notice.

    python scripts/plant_faults.py                     # every fault of scripts/faults.toml
    python scripts/plant_faults.py --only files,aside  # those whose name has one of these in it
    python scripts/plant_faults.py --list              # only look that each text still stands there

A fault of the table is a text that stands once in a file, what takes its place, and the tests that
must fail for it. The slow tests are left out. In the end the tests that failed run without a fault,
so that nothing counts as caught that fails anyway. The exit code is 1 if a fault is not caught, or
its text no longer stands in its file.

The kernels' own instructions have a script that breaks all of them: scripts/kernels/mutate.py.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "scripts" / "faults.toml"
PYTEST = (sys.executable, "-m", "pytest", "-q", "-m", "not slow", "--tb=no", "-rfE")


@dataclass(frozen=True)
class Fault:
    """A name ("package: what is wrong"), a file with `before` in it, and who must notice."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


def read_faults() -> list[Fault]:
    """Returns the faults of the table."""
    entries = tomllib.loads(TABLE.read_text(encoding="utf-8"))["fault"]
    return [Fault(**entry | {"tests": tuple(entry["tests"])}) for entry in entries]


def problem(fault: Fault) -> str | None:
    """Returns why a fault can't be planted, or None."""
    file = ROOT / fault.file
    count = file.read_text(encoding="utf-8").count(fault.before) if file.is_file() else 0
    if count != 1:
        return f"its text stands {count} times in {fault.file}"
    missing = [name for name in fault.tests if not (ROOT / name.partition("::")[0]).exists()]
    return f"there is no {', '.join(missing)}" if missing else None


def copy_tree(target: Path) -> None:
    """Copies what git knows, and new files that it does not ignore, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if os.path.lexists(ROOT / name):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)


def run_tests(tree: Path, *arguments: str, timeout: float | None) -> tuple[int | None, str]:
    """Runs pytest in a tree; returns its exit code, None if it took too long, and its output."""
    environment = os.environ | {
        "PYTHONPATH": str(tree),  # before whatever is installed, in child processes too
        "PYTHONDONTWRITEBYTECODE": "1",  # two faults within a second would look the same to it
        "OMP_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(
            [*PYTEST, *arguments],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout


def failures(output: str) -> list[str]:
    """Returns the tests that pytest's summary names as failed."""
    lines = (line.partition(" ") for line in output.splitlines())
    return [test.split(" - ")[0] for word, _, test in lines if word in ("FAILED", "ERROR")]


def plant(fault: Fault, tree: Path, timeout: float) -> tuple[str | None, str]:
    """Runs a fault's tests with it; returns the one that caught it, or None and why none did."""
    file = tree / fault.file
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(fault.before, fault.after), encoding="utf-8")
    try:
        code, output = run_tests(tree, "-x", *fault.tests, timeout=timeout)
    finally:
        file.write_text(text, encoding="utf-8")
    if code is None:
        return None, f"the tests took over {timeout:.0f} s"
    failed = failures(output)
    if code == 1 and failed:
        return failed[0], ""
    last = output.strip().splitlines()[-1:] or ["no output"]
    return None, f"pytest ended with {code}: {last[0]}"


def plant_all(faults: list[Fault], jobs: int, timeout: float) -> dict[str, str]:
    """Plants each fault, says what came of it, and returns the tests that caught some, by name."""
    caught: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as directory:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            trees.put(Path(directory) / str(number))
            copy_tree(Path(directory) / str(number))

        def run(fault: Fault) -> None:
            tree, start = trees.get(), time.monotonic()
            try:
                test, why = plant(fault, tree, timeout)
            finally:
                trees.put(tree)
            if test is not None:
                caught[fault.name] = test
            verdict = f"NOT CAUGHT: {why}" if test is None else f"caught by {test}"
            print(f"{fault.name}\n    {verdict} ({time.monotonic() - start:.0f} s)", flush=True)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(run, faults))
        if caught:
            _, output = run_tests(trees.get(), *sorted(set(caught.values())), timeout=None)
            for test in failures(output):
                print(f"{test} fails without a fault too: it catches nothing")
                caught = {name: found for name, found in caught.items() if found != test}
    return caught


def main() -> int:
    """Runs the script and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="NAMES", help="parts of names, with commas")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="faults at a time")
    parser.add_argument("--timeout", type=float, default=900, metavar="S", help="for one's tests")
    parser.add_argument("--list", action="store_true", help="name the faults and stop")
    options = parser.parse_args()
    names = options.only.split(",")
    faults = [fault for fault in read_faults() if any(name in fault.name for name in names)]
    broken = {fault.name: why for fault in faults if (why := problem(fault))}
    for fault in faults:
        if options.list or fault.name in broken:
            print(fault.name + (f": {broken[fault.name]}" if fault.name in broken else ""))
    if options.list:
        return int(bool(broken))
    sound = [fault for fault in faults if fault.name not in broken]
    caught = plant_all(sound, options.jobs, options.timeout)
    print(f"{len(caught)} of {len(faults)} faults caught")
    return int(len(caught) < len(faults) or not faults)


if __name__ == "__main__":
    sys.exit(main())
