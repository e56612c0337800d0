"""Moving trees between devices, parameters among them: those are stored as each device wants it."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from torch.utils import _pytree as pytree

import qwen35.forms as forms

from ..forms import Weight, compact, is_special
from ..xla import devices, trees
from .declarations import declare, declare_vision
from .params import Params, VisionParams

_Model = TypeVar("_Model", bound=Params | VisionParams)


def device_put(tree: Any, device: str) -> Any:
    """Return `tree`, any pytree, with every tensor on `device`: "cpu" or "xla".

    Tensors that are there already are not copied, and where all are, `tree` itself is returned.
    Parameters are stored, and their operations formed, as `load` onto that device does it (see
    `Runtime.forms`). The result does not track gradients. Leaves other than tensors stay as they
    are.

    Raises:
        ValueError: another device.
        RuntimeError: the XLA device can't be had.
    """
    parts, structure = pytree.tree_flatten(tree, is_leaf=_is_model)
    models = [place(part, device) for part in parts if _is_model(part)]
    if not models:
        return devices.device_put(tree, device)
    others = iter(devices.device_put([part for part in parts if not _is_model(part)], device))
    rest = iter(models)
    moved = [next(rest) if _is_model(part) else next(others) for part in parts]
    if all(new is old for new, old in zip(moved, parts, strict=True)):
        return tree
    return pytree.tree_unflatten(moved, structure)


def place(params: _Model, device: str) -> _Model:
    """Return the parameters on "cpu" or "xla", stored there as their forms want it."""
    if params.device.type == device:
        return params
    runtime = params.runtime.on(device)
    if runtime.rank is None:  # all ranks' shares of a tensor are one tensor: kept as declared
        moved = devices.device_put(params, device)
    elif device == "cpu":
        moved = devices.device_put(params, device)
        moved = pytree.tree_map(compact, moved, is_leaf=is_special)
    else:
        declared: Any = declare_vision if isinstance(params, VisionParams) else declare
        entries = trees.named_leaves(declared(params.config, params.runtime), "")
        linear = {_field(path) for path, parameter in entries if parameter.linear}
        form = forms.get(runtime.forms)

        def put(path: Any, leaf: Weight) -> Weight:
            field = _field(pytree.keystr(path))
            if field in linear:
                return form.place(compact(leaf), device)
            return devices.device_put(leaf, device)

        moved = pytree.tree_map_with_path(put, params, is_leaf=is_special)
    return with_choices(moved, runtime)


def with_choices(params: Any, runtime: Any) -> Any:
    """Return parameters with these static choices, the vision tower's among them."""
    if isinstance(params, Params) and params.vision is not None:
        vision = dataclasses.replace(params.vision, runtime=runtime)
        return dataclasses.replace(params, vision=vision, runtime=runtime)
    return dataclasses.replace(params, runtime=runtime)


def _is_model(node: Any) -> bool:
    return isinstance(node, Params | VisionParams)


def _field(path: str) -> str:
    """The last name in ".layers[3].in_proj"."""
    return path.rpartition(".")[2]
