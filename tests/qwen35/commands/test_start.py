"""The start of a command: what it imports, and what stops it in the middle of that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qwen35.commands import cli

ROOT = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, "-m", "qwen35"]
# What installers write of this, after their own imports.
SCRIPT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["qwen35"]
MODULE, FUNCTION = SCRIPT.split(":")
INSTALLED = [
    *(sys.executable, "-c"),
    f"import sys; from {MODULE} import {FUNCTION}; sys.exit({FUNCTION}())",
]
HARNESS = [sys.executable, "-m", "qwen35.evaluation.harness"]
GENERATE = ["generate", "--model", str(ROOT / "demo"), "--prompt", "a"]
SLOW = {
    *(
        "torch",
        "torch_xla",
        "numpy",
        "transformers",
        "tokenizers",
        "huggingface_hub",
        "safetensors",
    ),
    *("pandas", "matplotlib", "av", "PIL", "lm_eval", "llguidance", "prompt_toolkit"),
}
# A module that takes for ever to import, and keeps exceptions to itself, as some code does.
FOREVER = """
import time
print("importing", flush=True)
while True:
    try:
        time.sleep(60)
    except BaseException:
        print("an exception", flush=True)
"""


def imported(arguments: list[str]) -> set[str]:
    """The modules that a command imports, those below others left out."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "qwen35", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout
    return {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}


def with_module(folder: Path, name: str, text: str) -> dict[str, str]:
    """An environment in which a module is another."""
    (folder / f"{name}.py").write_text(text)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], [], *([name, "--help"] for name in cli._COMMANDS)]
)
def test_what_a_command_is_can_be_asked_without_torch(arguments):
    found = imported(arguments)
    assert {"qwen35", "argparse"} <= found, "importtime names what it should"
    assert found & SLOW == set()


def test_public_names_import_no_more_than_they_need():
    code = "import sys, qwen35\nqwen35.load\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    modules = set(done.stdout.split())
    assert "torch" in modules
    unused = {"transformers", "pandas", "matplotlib", "av", "torch_xla", "lm_eval"}
    assert modules & (unused | {"llguidance", "prompt_toolkit", "huggingface_hub"}) == set()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    ("start", "moment"),
    [
        ([*COMMAND, *GENERATE], "argparse"),
        ([*COMMAND, *GENERATE], "torch"),
        ([*INSTALLED, *GENERATE], "argparse"),
        ([*INSTALLED, *GENERATE], "torch"),
        (HARNESS, "lm_eval"),
    ],
)
def test_a_command_that_is_importing_is_stopped_at_once(tmp_path, start, moment, number, code):
    """No exception is raised there: torch's own code aborts the process at one."""
    process = subprocess.Popen(
        start,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=with_module(tmp_path, moment, FOREVER),
    )
    try:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code and output == ""
    assert errors == ("\nqwen35: interrupted\n" if code == 130 else "")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["info", str(ROOT / "demo")]])
def test_a_reader_who_has_gone_from_the_start_is_no_error(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open(writing, "w") as closed:
        done = subprocess.run(
            [*COMMAND, *arguments],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            timeout=120,
        )
    assert done.returncode == 141 and done.stderr == ""


def test_without_standard_output_a_command_ends_well():
    command = " ".join([*COMMAND, "info", str(ROOT / "demo"), ">&-"])
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""


# Where torch should be: what OpenMP would read.
WAITING = """
import os
print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("arguments", "environment", "policy"),
    [
        ([*GENERATE, "--device", "cpu"], {}, "passive"),
        ([*GENERATE, "--device", "cpu"], {"OMP_WAIT_POLICY": "active"}, "active"),
        ([*GENERATE, "--device", "xla"], {}, "None"),
        (GENERATE, {}, "None"),
        (GENERATE, {"RANK": "0", "WORLD_SIZE": "2"}, "passive"),
        (["eval", "agreement", "--model", str(ROOT / "demo")], {}, "passive"),
    ],
)
def test_threads_that_compute_eagerly_wait_asleep(tmp_path, arguments, environment, policy):
    environment = with_module(tmp_path, "torch", WAITING) | environment
    if policy != "active":
        environment.pop("OMP_WAIT_POLICY", None)
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.stdout == f"{policy}\n", done.stderr
