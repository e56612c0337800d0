"""A program that has an exported manifest and a checkpoint, and nothing of ours: it knows numpy,
safetensors and docs/exports.md."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def build_inputs(manifest: Path, checkpoint: Path, rank: int) -> dict[str, np.ndarray]:
    """What a rank's graph takes by path, but for what only a caller knows: tokens, and a state,
    which begins as zeros."""
    content = json.loads(manifest.read_text())
    captured = load_file(manifest.with_suffix(".captured.safetensors"))
    tensors = {}
    for file in checkpoint.glob("*.safetensors"):
        tensors |= load_file(file)
    inputs = {}
    for parameter in content["parameters"]:
        path, shape, dtype = parameter["path"], parameter["shape"], parameter["dtype"]
        if path.startswith("captured"):
            value = captured[path]
        elif "by_rank" in parameter:
            value = np.array(parameter["by_rank"][rank], dtype)
        elif path.startswith("state"):
            value = np.zeros(shape, dtype)
        elif "checkpoint" in parameter:
            value = _put_together(parameter["checkpoint"], tensors, shape, dtype, rank)
        else:
            continue
        assert list(value.shape) == shape and value.dtype == dtype, path
        inputs[path] = value
    return inputs


def _put_together(place, tensors, shape, dtype, rank):
    value = np.zeros(shape, dtype)
    for piece in place["pieces"]:
        [name] = [name for name in piece["names"] if name in tensors]
        file = tensors[name]
        assert list(file.shape) == piece["shape"]
        if place["transposed"]:
            file = np.moveaxis(file, 0, -1).reshape(-1, len(file))
        # Indices one by one, the slow and plain way.
        pairs = [
            [(to + step, at + step) for to, at, count in runs for step in range(count)]
            for runs in piece["ranks"][rank]
        ]
        if any(not dimension for dimension in pairs):
            continue
        ours, theirs = zip(*(zip(*dimension, strict=True) for dimension in pairs), strict=True)
        value[np.ix_(*ours)] = file[np.ix_(*theirs)]
    return value
