"""What the ranks of a test do; each function runs in every rank's process (see `worker`)."""

import models
import torch
from qwen35.sharding import process, spmd
from qwen35.sharding.mesh import Mesh

import qwen35
from qwen35.jit import jit


def exercise(mesh: Mesh, rank: int, path: str) -> models.Said:
    """The model of a checkpoint on all ranks; rows split over dp."""
    process.start(mesh)
    params = qwen35.load(path, runtime=qwen35.Runtime(mesh=mesh, rank=rank))
    row = mesh.coordinates(rank)[0]
    share = 2 // mesh.dp
    said = models.exercise(params, rows=slice(row * share, (row + 1) * share))
    said.logits = {name: process.join_batch(value, mesh) for name, value in said.logits.items()}
    said.tokens = process.join_batch(said.tokens, mesh)
    return said


def gradients(mesh: Mesh, rank: int, path: str) -> tuple[float, list[torch.Tensor]]:
    """The loss of one prompt and the gradient of every parameter tensor of this rank."""
    process.start(mesh)
    params = qwen35.load(path, runtime=qwen35.Runtime(mesh=mesh, rank=rank))
    return models.gradients(params, mesh)


def virtual_devices(mesh: Mesh, rank: int, path: str, steps: int = models.STEPS) -> dict:
    """The same on the virtual devices of one process, through `qwen35.jit`."""
    spmd.start(mesh)
    runtime = qwen35.Runtime(mesh=mesh, rank=None)
    params = qwen35.load(path, device="xla", runtime=runtime)
    prefill = jit(qwen35.prefill, donate=("state",))
    decode = jit(qwen35.decode, donate=("state",))
    said = models.exercise(
        params,
        prefill=prefill,
        decode=decode,
        put=lambda tensor: qwen35.device_put(tensor, "xla"),
        get=lambda tree: qwen35.device_put(tree, "cpu"),
        steps=steps,
    )
    return {
        "said": said,
        "states": spmd.unstack(said.state, mesh),
        "compilations": (prefill.compile_count, decode.compile_count),
    }
