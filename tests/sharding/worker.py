"""Runs a function of `scenarios` in one process per rank, forked from one that has imported torch.

    python worker.py SCENARIO DIRECTORY DP TP

`DIRECTORY/arguments.pt` holds keyword arguments; rank r's result goes to `DIRECTORY/rank-r.pt`.
Like torchrun, it ends all ranks when one fails (unless the argument `keep_going` is true), and
then exits with 1. The argument `processes` starts another number of ranks than the mesh has.
"""

import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import scenarios
import torch

from qwen35.sharding import process
from qwen35.sharding.mesh import Mesh


def main() -> int:
    name, directory, dp, tp = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    arguments = torch.load(directory / "arguments.pt", weights_only=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = arguments.pop("processes", dp * tp)
    keep_going = arguments.pop("keep_going", False)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": str(processes)}
    children = {}
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            os._exit(_run(name, directory, Mesh(dp=dp, tp=tp), rank, arguments))
        children[child] = rank
    failed = 0
    while children:
        child, status = os.wait()
        children.pop(child)
        if status and not failed and not keep_going:
            for other in children:
                os.kill(other, signal.SIGTERM)
        failed |= status
    return 1 if failed else 0


def _run(name: str, directory: Path, mesh: Mesh, rank: int, arguments: dict) -> int:
    try:
        result = getattr(scenarios, name)(mesh, rank, **arguments)
        torch.save(result, directory / f"rank-{rank}.pt")
        if torch.distributed.is_initialized():
            process.stop()
        return 0
    except BaseException:
        text = traceback.format_exc()
        sys.stderr.write("".join(f"[rank {rank}] {line}\n" for line in text.splitlines()))
        sys.stderr.flush()
        return 1


if __name__ == "__main__":
    sys.exit(main())
