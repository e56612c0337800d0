"""Fixtures: checkpoints of small models, and running a scenario in one process per rank."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # lets the tests import the modules that stand beside them

# E402: the path above has to be set first.
import models  # noqa: E402

import qwen35  # noqa: E402
from qwen35.sharding.mesh import Mesh  # noqa: E402


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """checkpoint(name): the directory of a model of `models.CONFIGS`, written once."""

    @functools.cache
    def write(name: str) -> Path:
        directory = tmp_path_factory.mktemp(name)
        qwen35.save(models.wide_params(models.CONFIGS[name]), directory)
        return directory

    return write


@pytest.fixture(scope="session")
def alone(checkpoint) -> Callable[[str], models.Said]:
    """alone(name, steps): what the model says on a single device, without a mesh."""
    return functools.cache(
        lambda name, steps=models.STEPS: models.exercise(qwen35.load(checkpoint(name)), steps=steps)
    )


@pytest.fixture
def run_ranks(tmp_path) -> Callable[..., list]:
    """run_ranks(scenario, mesh, **arguments): the ranks' results, in rank order."""

    def run(scenario: str, mesh: Mesh, *, timeout: float = 300, **arguments) -> list:
        done = start_ranks(tmp_path, scenario, mesh, timeout, arguments)
        assert done.returncode == 0, done.stderr
        processes = arguments.get("processes", mesh.size)
        files = [tmp_path / f"rank-{rank}.pt" for rank in range(processes)]
        return [torch.load(file, weights_only=False) for file in files]

    return run


@pytest.fixture
def fail_ranks(tmp_path) -> Callable[..., str]:
    """fail_ranks(scenario, mesh, **arguments): the standard error of ranks that must fail."""

    def run(scenario: str, mesh: Mesh, *, timeout: float = 120, **arguments) -> str:
        done = start_ranks(tmp_path, scenario, mesh, timeout, arguments)
        assert done.returncode == 1, done.stderr
        return done.stderr

    return run


def start_ranks(directory: Path, scenario: str, mesh: Mesh, timeout: float, arguments: dict):
    torch.save(arguments, directory / "arguments.pt")
    command = [sys.executable, str(HERE / "worker.py"), scenario, str(directory)]
    return subprocess.run(
        [*command, str(mesh.dp), str(mesh.tp)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
