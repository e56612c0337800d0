"""A state in a safetensors file, so that a sequence goes on in another process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checks.errors import CheckpointError
from ..checks.json_file import parse_object
from ..forms import columns
from ..model.config_fields import FULL
from ..model.params import Params
from ..model.rows import grow
from ..model.state import AttentionState, DeltaNetState, State
from ..xla.devices import device_put, indices
from . import aside

_FORMAT = "qwen35 state 1"


def fingerprint(params: Params) -> str:
    """A name of the model that a state belongs to: its geometry, dtype, and some of its weights."""
    config = params.config
    content = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    first = indices(min(8, config.vocab_size), params.device)
    sample = (params.norm, params.layers[0].input_norm, columns(params.head, first))
    for tensor in device_put(tuple(tensor.detach().float() for tensor in sample), "cpu"):
        content.update(tensor.contiguous().numpy().tobytes())
    dtype = str(params.dtype).removeprefix("torch.")
    return (
        f"{config.num_hidden_layers} layers of width {config.hidden_size}, {dtype}, "
        f"{content.hexdigest()[:16]}"
    )


class SavedState(NamedTuple):
    """What `load_state` reads: the state; logits [B, V] or None; metadata by name."""

    state: State
    logits: Tensor | None
    metadata: dict[str, str]


def save_state(
    path: str | Path,
    params: Params,
    state: State,
    *,
    logits: Tensor | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a state, keys and values up to its longest row's position, whole or not at all.

    Args:
        path: the file.
        params: whose state it is: `load_state` refuses it for another model.
        state: on any device; not one split over a mesh.
        logits: [B, V] after the last tokens, to go on without reading one more.
        metadata: what to keep with it, as text by name.

    Raises:
        ValueError: the parameters are split over a mesh.
    """
    _refuse_mesh(params)
    path = Path(path)
    state = device_put(state, "cpu")
    used = max(1, int(state.position.max()))
    tensors = {"position": state.position, "rope_offset": state.rope_offset}
    for index, layer in enumerate(state.layers):
        if isinstance(layer, AttentionState):
            layer = AttentionState(layer.key[..., :used], layer.value[:, :, :used])
        for name, tensor in zip(layer._fields, layer, strict=True):
            tensors[f"layers.{index}.{name}"] = tensor.contiguous()
    if logits is not None:
        tensors["logits"] = device_put(logits, "cpu")
    header = {"format": _FORMAT, "model": fingerprint(params)}
    header["metadata"] = json.dumps(dict(metadata or {}))
    with aside.replaced(path) as file:
        save_file(tensors, file, metadata=header)


def load_state(path: str | Path, params: Params, capacity: int | None = None) -> SavedState:
    """Reads a state that `save_state` wrote, on params' device, and what was kept with it.

    Args:
        path: the file.
        params: the model that goes on.
        capacity: tokens per row; None is what the state uses.

    Raises:
        CheckpointError: the file is damaged, no state, or another model's.
        ValueError: the capacity is below what the state uses, or params are split over a mesh.
    """
    _refuse_mesh(params)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged, or not a safetensors file ({error})") from None
    if header.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not a saved state ({_FORMAT!r} is missing)")
    ours = fingerprint(params)
    if header["model"] != ours:
        raise CheckpointError(
            f"{path}: the state of another model ({header['model']}), not of this one ({ours})"
        )
    try:
        layers: list[AttentionState | DeltaNetState] = []
        for index, kind in enumerate(params.config.layer_types):
            form = AttentionState if kind == FULL else DeltaNetState
            layers.append(form(*(tensors[f"layers.{index}.{name}"] for name in form._fields)))
        state = State(tensors["position"], tensors["rope_offset"], tuple(layers))
    except KeyError as error:
        raise CheckpointError(f"{path}: {error} is missing") from None
    if capacity is not None:
        state = grow(state, capacity)
    state, logits = device_put((state, tensors.get("logits")), params.device.type)
    metadata = parse_object(header.get("metadata", ""), str(path), "a state's metadata")
    return SavedState(state, logits, metadata)


def _refuse_mesh(params: Params) -> None:
    if params.runtime.mesh is not None and params.runtime.mesh.size > 1:
        raise ValueError(f"states split over {params.runtime.mesh} can't be saved or loaded")
