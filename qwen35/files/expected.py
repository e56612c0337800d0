"""What a checkpoint is going to be loaded as: parameters that have no values yet."""

from __future__ import annotations

from pathlib import Path

import torch

import qwen35.forms as forms

from ..checks import hub
from ..forms import Weight
from ..model.config import Config
from ..model.declarations import Parameter, axis_sizes, declare, map_declarations
from ..model.dtypes import as_dtype
from ..model.params import Params, Runtime
from . import aside
from .checkpoint_files import opened
from .materialize import with_tp_index
from .presharded import is_presharded


def expected(
    path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    runtime: Runtime = Runtime(),
    vision: bool | None = None,
) -> Params | None:
    """Returns what `load` is going to, on the XLA device, as `placeholder_params`: steps can be
    compiled for it while the files are still read.

    Arguments are those of `load`. None is returned where how weights are stored is not known before
    they are read: of quantised ones, of rank files, and of several ranks in one process.

    Raises:
        CheckpointError: what `load` raises before it reads weights.
    """
    directory = hub.directory_of(path)
    aside.settle(directory)
    if runtime.rank is None or is_presharded(directory):
        return None
    config, files = opened(directory, vision, runtime)
    if files.scheme is not None:
        return None
    files.check(declare(config, runtime))
    wanted = None if dtype is None or dtype == "auto" else as_dtype(dtype)
    return placeholder_params(config, dtype=wanted or files.dtype, runtime=runtime)


def placeholder_params(
    config: Config, *, dtype: torch.dtype | str, runtime: Runtime = Runtime()
) -> Params:
    """Declares a rank's parameters on the XLA device, stored there as `load` stores dense ones, but
    without values or memory: steps can be compiled for them, and then run on those that are loaded.

    Arguments and errors are those of `abstract_params`; of several ranks in one process, `runtime`
    is one of theirs.
    """
    dtype, sizes, runtime = as_dtype(dtype), axis_sizes(config), runtime.on("xla")

    def placeholder(parameter: Parameter) -> torch.Tensor | Weight:
        shape = parameter.local_shape(sizes, runtime.mesh, runtime.own_rank)
        form = forms.get(runtime.forms if parameter.linear else "plain")
        return form.store(shape, parameter.dtype or dtype, "xla", None)

    return with_tp_index(map_declarations(placeholder, declare(config, runtime)), "xla")
