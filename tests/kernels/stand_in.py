"""A stand-in for AWS's `nki` on torch-xla's CPU device: kernels become custom calls, and never run.

`@nki.jit` gives an object that takes the bracket and torch-xla tensors as AWS documents it, and
adds one call of `AwsNeuronCustomNativeKernel` to the graph. Its operands go through the emulator
first (as zeros), so that they are such as the kernel takes, and its result shapes are the
kernel's own.
"""

import functools
import importlib
import inspect
import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from qwen35 import kernels
from qwen35.kernels import emulator
from qwen35.xla.environment import xla

TARGET = "AwsNeuronCustomNativeKernel"
STATUS_RETURNING = 2  # the API version in AWS's example


def custom_call(operands, results, config):
    """torch-xla's own node for a custom call; its graph hash leaves the configuration out."""
    shapes, dtypes = zip(*results, strict=True)
    call = xla()._XLAC._xla_custom_call
    return call(list(operands), TARGET, shapes, dtypes, False, config, STATUS_RETURNING, {})


def user_computation(operands, results, config):
    """A node `xla::_op_...` with the call in a computation of its own: what AWS's binding leaves
    in the lazy graph, by its documentation."""
    from torch_xla.core import xla_builder

    core = xla()._XLAC
    inputs = [xla_builder.create_placeholder_tensor(x.shape, x.dtype) for x in operands]
    outputs = list(custom_call(inputs, results, config))
    proto = core._get_xla_tensors_hlo_proto(outputs)
    computation = xla_builder.computation_from_module_proto("kernel", proto)
    # The computation has its parameters in an order of its own.
    handles = core._get_tensors_handle(inputs)
    _, parameters = core._get_tensors_xla_device_data_node(outputs)
    order = [handles.index(handle) for handle in core._get_tensors_handle(list(parameters))]
    arguments = [operands[index] for index in order]
    return core._xla_user_computation("xla::_op_<locals>CallImpl", arguments, computation)


NODES = {"custom call": custom_call, "user computation": user_computation}


class JittedKernel:
    """What the stand-in's `@nki.jit` makes of a function."""

    def __init__(self, function, node, cores=1):
        self.function, self.node, self.cores = function, node, cores

    def __getitem__(self, cores):
        return JittedKernel(self.function, self.node, cores)

    def __call__(self, *operands, **static):
        module = Path(inspect.getfile(self.function)).stem
        name = self.function.__name__
        signature = tuple((tuple(x.shape), x.dtype) for x in operands)
        shapes = _result_shapes(module, name, signature, self.cores, **static)
        dtypes = (operands[2].dtype, torch.float32)
        config = {"func_name": name, "grid": [self.cores], **static}
        results = list(zip(shapes, dtypes, strict=True))
        return tuple(self.node(operands, results, json.dumps(config)))


@functools.cache
def _result_shapes(module, name, signature, cores, **static):
    arrays = [
        np.zeros(shape, np.float32)
        if dtype == torch.float32
        else emulator.HostTensor(np.zeros(shape), str(dtype).removeprefix("torch."))
        for shape, dtype in signature
    ]
    kernel = emulator.load(module, name)
    return [list(x.shape) for x in emulator.simulate(kernel, *arrays, lnc=cores, **static).outputs]


@contextmanager
def installed(node: str) -> Iterator[None]:
    """`import nki` finds the stand-in, with `NODES[node]` in the graph; afterwards nothing does."""
    nki = types.ModuleType("nki")
    nki.jit = lambda function: JittedKernel(function, NODES[node])
    nki.isa, nki.language = types.ModuleType("nki.isa"), types.ModuleType("nki.language")
    fakes = {"nki": nki, "nki.isa": nki.isa, "nki.language": nki.language}
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if _concerned(name)}
    sys.modules.update(fakes)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for name in [name for name in sys.modules if _concerned(name)]:
            del sys.modules[name]
            vars(kernels).pop(name.rpartition(".")[2], None)
        sys.modules.update(hidden)


def _concerned(name: str) -> bool:
    return name == "nki" or name.startswith(("nki.", f"{kernels.__name__}.nki_"))
