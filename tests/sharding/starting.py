"""Starts commands as a person does: alone, under torchrun, on two machines."""

import json
import os
import socket
import subprocess
import sys


def run(*command: str, timeout: float = 300) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def torchrun(ranks: int, *command: str) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return run(*launcher, *command)


def two_machines(ranks: int, *command: str) -> subprocess.CompletedProcess:
    """What the first of two launchers says, which meet as those of two machines do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    launcher += ["--rdzv-endpoint", address, "--nproc-per-node", str(ranks)]
    launchers = [
        subprocess.Popen(
            [*launcher, "--node-rank", str(node), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for node in range(2)
    ]
    said = [launcher.communicate(timeout=300) for launcher in launchers]
    assert launchers[1].returncode == 0 and said[1][0] == "", said[1]
    return subprocess.CompletedProcess(command, launchers[0].returncode, *said[0])


def result_of(done: subprocess.CompletedProcess) -> dict:
    """The one JSON object on standard output."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
