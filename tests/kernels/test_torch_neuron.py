"""The NKI kernels as operators of TorchNeuron, with a stand-in for its `nki_op`.

There is no device "neuron" here, and no compiler for it: what is shown is that each kernel becomes
one functional operator by AWS's documented parameters, which calls the kernel on as many cores as
the environment says, and that it says what it gives for tensors without values.
"""

import sys
import types

import pytest
import torch

from qwen35.kernels import binding, host, neuron


@pytest.fixture
def made(monkeypatch):
    """What `nki_op` was asked for, by name: (function, mutates_args); run by the emulator."""
    asked = {}

    def nki_op(name, fn=None, mutates_args=()):
        asked[name] = (fn, mutates_args)
        return torch.library.custom_op(f"{name}_by_stand_in", fn, mutates_args=mutates_args)

    class Jitted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, cores):
            return lambda *operands, **static: cores_and_run(self.kernel, cores, operands, static)

    def cores_and_run(kernel, cores, operands, static):
        asked.setdefault("cores", []).append(cores)
        return host.launch(kernel, *operands, **static)

    module = types.ModuleType("torch_neuronx")
    module.nki_op = nki_op
    monkeypatch.setitem(sys.modules, "torch_neuronx", module)
    kernels = {kernel.module: kernel for kernel in binding.KERNELS}

    def import_module(name, package):
        kernel = kernels[name.removeprefix(".")]
        return types.SimpleNamespace(**{kernel.function: Jitted(kernel)})

    monkeypatch.setattr(neuron.importlib, "import_module", import_module)
    monkeypatch.setenv("NEURON_LOGICAL_NC_CONFIG", "1")
    neuron.define_operators.cache_clear()
    yield asked
    neuron.define_operators.cache_clear()


def test_each_kernel_is_one_functional_operator(made):
    neuron.define_operators()
    neuron.define_operators()  # once is enough
    names = {f"qwen35::{kernel.function}" for kernel in binding.KERNELS}
    assert set(made) == names and all(not made[name][1] for name in names)
    query, key, value = torch.randn(3, 1, 2, 16)
    operands = (query[:, :1], key[:, :1], value, torch.rand(1, 2), torch.rand(1, 2))
    state = torch.randn(1, 2, 16, 16)
    operator = torch.ops.qwen35.gated_delta_step_by_stand_in
    out, new = operator(*operands, state, True)
    expected = host.launch(binding.STEP, *operands, state, exact=True)
    assert torch.equal(out, expected[0]) and torch.equal(new, expected[1])
    assert made["cores"] == [1]
    torch.library.opcheck(operator.default, (*operands, state), test_utils=("test_faketensor",))


def test_what_is_missing_on_the_device_is_the_package_alone():
    """`nki` of AWS cannot be imported here; the device's kind is right."""
    assert "package nki" in neuron.missing(types.SimpleNamespace(type="neuron"))
    assert "not on 'cpu'" in neuron.missing(torch.device("cpu"))
