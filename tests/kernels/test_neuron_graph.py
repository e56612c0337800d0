"""The graphs that the model gives Neuron, with a stand-in for AWS's `nki` (see stand_in).

Nothing here runs on a device, nor through AWS's packages: what is shown is that each DeltaNet
layer is one custom call on the right tensors, and that nothing else in the graph changes.
"""

import dataclasses
import itertools
import json
import re
import sys
from collections import Counter

import pytest
import stand_in
import torch
from calling import CONFIG, SIZES, run, tensors

import qwen35
from qwen35 import Config, kernels
from qwen35.commands import cli
from qwen35.files.materialize import abstract_params
from qwen35.graphs import lowering
from qwen35.graphs.engine_graphs import trace_engine
from qwen35.graphs.export import trace
from qwen35.kernels import binding, portable
from qwen35.sharding.mesh import Mesh
from qwen35.xla import private, tracing
from qwen35.xla.devices import device_put
from qwen35.xla.environment import xla

LAYERS = 3  # with DeltaNet, of four
_HEADS = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_key_value_heads": 2}
WIDE = Config.from_dict({**CONFIG, **_HEADS, "vocab_size": 64})  # can be split over two ranks


@pytest.fixture
def device(monkeypatch):
    """device(kind): torch-xla says that it runs on a Neuron device of this kind."""

    def pretend(kind="NC_v3d"):
        monkeypatch.setattr(xla().runtime, "device_type", lambda: "NEURON")
        monkeypatch.setattr(private, "_xla_device_kind", lambda device: kind)

    return pretend


@pytest.fixture(params=stand_in.NODES)
def node(request, device):
    """Neuron with the stand-in for `nki`, by both kinds of node that torch-xla has."""
    device()
    with stand_in.installed(request.param):
        yield request.param


def lower(step, tokens, *, kernels="auto", dtype=torch.float32, mesh=None):
    """The graph of prefill or decode for two rows of the tiny model."""
    runtime = qwen35.Runtime(mesh=mesh, kernels=kernels)
    params = abstract_params(WIDE, dtype=dtype, runtime=runtime)
    shape = (2,) if step is qwen35.decode else (2, tokens)
    tokens = torch.empty(shape, dtype=torch.int32, device="meta")
    return lowering.lower(step, params, qwen35.init_state(params, 2, 512), tokens)


def custom_calls(module):
    """Of every custom call: its computation, instruction, operand types and configuration."""
    found = []
    for computation in module.computations.values():
        for call in computation.values():
            if call.opcode == "custom-call":
                operands = [computation[name].arrays[0] for name in call.operands]
                types = [(x.dtype, x.shape) for x in operands]
                config = re.search(r"backend_config=({.*})", call.attributes).group(1)
                found.append((call, types, json.loads(config)))
    return found


@pytest.mark.parametrize(
    ("step", "tokens", "operand_tokens", "function", "static"),
    [
        (qwen35.decode, 1, (), "gated_delta_step", {}),
        (qwen35.prefill, 1, (), "gated_delta_step", {}),
        (qwen35.prefill, 5, (5,), "gated_delta_chunk", {"exact": True}),
        (qwen35.prefill, 128, (128,), "gated_delta_chunk", {"exact": True}),
        (qwen35.prefill, 200, (256,), "gated_delta_prefill", {"exact": True}),
    ],
)
def test_one_call_per_layer_on_the_right_tensors(
    node, step, tokens, operand_tokens, function, static
):
    graph = lower(step, tokens)
    module = graph.module
    assert module.custom_calls() == {"AwsNeuronCustomNativeKernel": LAYERS}
    key_heads, value_heads, key_size, value_size = 2, 4, 16, 32
    lead = (2, *operand_tokens)
    keys, values = (*lead, key_heads, key_size), (*lead, value_heads, value_size)
    shapes = [keys, keys, values, (*lead, value_heads), (*lead, value_heads)]
    state = (2, value_heads, key_size, value_size)
    for call, operands, config in custom_calls(module):
        assert operands == [("f32", shape) for shape in (*shapes, state)]
        assert [(x.dtype, x.shape) for x in call.arrays] == [("f32", values), ("f32", state)]
        assert config == {
            "func_name": function,
            "grid": [2],
            **kernels.DEFAULT_PLAN._asdict(),
            **static,
        }


@pytest.mark.parametrize("kind", ["NC_v3", "NC_v3d"])
def test_the_bracket_is_the_cores_of_a_logical_core(device, kind):
    device(kind)
    with stand_in.installed("custom call"):
        graph = lower(qwen35.decode, 1)
    assert {config["grid"][0] for *_, config in custom_calls(graph.module)} == {
        {"NC_v3": 1, "NC_v3d": 2}[kind]
    }


def test_a_bfloat16_model_asks_for_products_of_16_bits(node):
    graph = lower(qwen35.prefill, 5, dtype=torch.bfloat16)
    assert [config["exact"] for *_, config in custom_calls(graph.module)] == [False] * LAYERS


@pytest.mark.parametrize(("step", "tokens"), [(qwen35.decode, 1), (qwen35.prefill, 5)])
def test_the_state_passes_through_the_call_into_its_own_memory(node, step, tokens):
    """The state argument is the call's sixth operand as it is, and its second result is the
    output that takes the argument's memory."""
    graph = lower(step, tokens)
    entry = graph.module.entry
    kind = "custom-call" if node == "custom call" else "call"
    calls = [x for x in entry.values() if x.opcode == kind]
    parameters = {x.parameter: x for x in entry.values() if x.opcode == "parameter"}
    outputs = [entry[name] for name in graph.module.root.operands]
    donated = dict(graph.donated)
    seen = []
    for number, path in enumerate(graph.arguments):
        if path.startswith("state.layers") and path.endswith("recurrent"):
            result = outputs[donated[number]]
            while result.opcode in ("transpose", "reshape"):
                result = entry[result.operands[0]]
            assert result.opcode == "get-tuple-element" and "index=1" in result.attributes
            call = entry[result.operands[0]]
            assert last_operand(graph.module, call) == parameters[number].name
            seen.append(call.name)
    assert sorted(seen) == sorted(call.name for call in calls) and len(seen) == LAYERS


def last_operand(module, call):
    """The name, in the entry, of what the kernel gets as its sixth operand."""
    if call.opcode == "custom-call":
        return call.operands[5]
    name = re.search(r"to_apply=%([\w.\-]+)", call.attributes).group(1)
    computation = module.computations[name]
    inner = next(x for x in computation.values() if x.opcode == "custom-call")
    return call.operands[computation[inner.operands[5]].parameter]


def opaque(query, key, value, log_decay, beta, state, chunk=None):
    """In the place of a portable operation: a custom call with the same operands and results."""
    results = [(list(x.shape), x.dtype) for x in (value, state)]
    return tuple(
        stand_in.custom_call((query, key, value, log_decay, beta, state), results, "portable")
    )


def opaque_step(query, key, value, log_decay, beta, state, active=None):
    """The same of a step, whose kernel takes the decay itself."""
    return opaque(query, key, value, binding.decay_of(log_decay), beta, state)


def operations(module):
    """How often the entry has each operation, with the type of its result and its attributes.

    Without calls and what takes their results apart.
    """
    without = ("custom-call", "call", "get-tuple-element")
    return Counter(
        (x.opcode, x.arrays, re.sub(r"%[\w.\-]+", "%", re.sub(r"metadata={.*}", "", x.attributes)))
        for x in module.entry.values()
        if x.opcode not in without
    )


def interface(graph):
    """Arguments with the outputs that take their memory, results. The order of the arguments is
    that in which torch-xla meets them, which no caller sees."""
    donated = {graph.arguments[number]: output for number, output in graph.donated}
    arguments = sorted((path, donated.get(path, -1)) for path in graph.arguments)
    outputs = [graph.module.entry[name].arrays for name in graph.module.root.operands]
    return graph.paths, arguments, outputs


@pytest.mark.parametrize("mesh", [None, Mesh(tp=2)])
@pytest.mark.parametrize(
    ("step", "tokens"), [(qwen35.decode, 1), (qwen35.prefill, 128), (qwen35.prefill, 256)]
)
def test_the_rest_of_the_graph_is_unchanged(node, step, tokens, mesh, monkeypatch):
    graph = lower(step, tokens, mesh=mesh)
    other = lower(step, tokens, mesh=mesh, kernels="portable")
    assert interface(graph) == interface(other)
    assert graph.module.collectives() == other.module.collectives()
    assert bool(graph.module.collectives()) == (mesh is not None)
    assert not other.module.custom_calls()

    # All that is not inside the portable operations is there once more, and no more than that.
    monkeypatch.setattr(portable, "gated_delta_step", opaque_step)
    monkeypatch.setattr(portable, "gated_delta_prefill", opaque)
    other = lower(step, tokens, mesh=mesh, kernels="portable")
    assert operations(graph.module) == operations(other.module)
    assert interface(graph) == interface(other)


def test_padding_is_all_that_a_ragged_length_adds(node, monkeypatch):
    """Per layer five tensors are padded with zero and one result is cut."""
    graph = lower(qwen35.prefill, 200)
    monkeypatch.setattr(portable, "gated_delta_prefill", opaque)
    other = lower(qwen35.prefill, 200, kernels="portable")
    added = operations(graph.module) - operations(other.module)
    assert not operations(other.module) - operations(graph.module)
    counts = Counter()
    for (opcode, *_), count in added.items():
        counts[opcode] += count
    constants = counts.pop("constant", 0)
    assert counts == {"pad": 5 * LAYERS, "slice": LAYERS} and constants <= 5 * LAYERS


def test_jit_lowers_the_same_calls(node):
    """`qwen35.jit(...).lower` on parameters with data, and on the portable form beside them."""
    params = device_put(qwen35.init_params(WIDE), "xla")
    state = qwen35.init_state(params, 2, 64)
    tokens = device_put(torch.zeros(2, 5, dtype=torch.int32), "xla")
    lengths = device_put(torch.tensor([5, 2]), "xla")
    text = qwen35.jit(qwen35.prefill, donate=("state",)).lower(params, state, tokens, lengths)
    assert text.count('custom_call_target="AwsNeuronCustomNativeKernel"') == LAYERS
    text = qwen35.jit(qwen35.decode).lower(params, state, tokens[:, 0])
    assert text.count('custom_call_target="AwsNeuronCustomNativeKernel"') == LAYERS
    params = params.with_runtime(kernels="portable")
    assert "custom-call" not in qwen35.jit(qwen35.decode).lower(params, state, tokens[:, 0])


# Exported graphs.


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(tp=2)])
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_exported_graphs_have_the_kernels_and_keep_every_rule(node, phase, mesh):
    graph = trace(WIDE, phase, mesh=mesh, tokens=130, capacity=256, kernels="nki")
    assert graph.module.custom_calls() == {"AwsNeuronCustomNativeKernel": LAYERS}
    assert graph.lint() == []
    plain = trace(WIDE, phase, mesh=mesh, tokens=130, capacity=256)  # on this device, too
    assert plain.lint() == [] and not plain.module.custom_calls()
    found = dataclasses.replace(graph, kernels="portable").lint()
    assert f"custom_calls_as_designed: {LAYERS} NKI kernels, where kernels are portable" in found
    assert dataclasses.replace(plain, kernels="nki").lint() == [
        f"custom_calls_as_designed: 0 NKI kernels, designed are {LAYERS}"
    ]


def test_an_engines_graphs_have_the_kernels(node):
    """A prefill step decodes the slots, too: twice as many."""
    calls = {}
    for graph in trace_engine(WIDE, slots=2, capacity=64, chunks=(16,), kernels="nki"):
        assert graph.lint() == []
        name = graph.phase.removeprefix("engine_")
        calls[name] = sum(graph.module.custom_calls().values())
    assert {name: count for name, count in calls.items() if count} == {
        "prefill_16": 2 * LAYERS,
        "decode": LAYERS,
    }


def test_the_export_command_takes_the_kernels(node, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(qwen35.presets, "0.8b", WIDE)
    command = ["export", "--preset", "0.8b", "--phase", "decode", "--kernels", "nki"]
    assert cli.main([*command, "--capacity", "64", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "decode.json").read_text())
    assert content["custom_calls"] == {"AwsNeuronCustomNativeKernel": LAYERS}
    assert content["kernels"] == "nki"
    for ending in ("hlo.pb", "hlo.txt", "stablehlo"):
        data = (tmp_path / f"decode.{ending}").read_bytes()
        assert b"AwsNeuronCustomNativeKernel" in data and b"gated_delta_step" in data


def test_the_export_command_needs_a_device_for_the_kernels(tmp_path, capsys):
    command = ["export", "--preset", "0.8b", "--phase", "decode", "--kernels", "nki"]
    assert cli.main([*command, str(tmp_path / "out")]) == 2
    assert "kernels='nki' needs tensors on a Neuron device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Graphs of distinct kernels.


def placeholders(tokens):
    return [lowering.placeholder(x) for x in tensors(tokens=tokens, group=2)]


def graph_hash(outputs, salted):
    extra = tracing.salt(list(outputs)) if salted else []
    return xla()._XLAC._get_graph_hash([*outputs, *extra])


def test_graphs_of_distinct_kernels_have_distinct_hashes(node, device):
    """What jit compiles a graph under: equal kernels agree, those that differ in anything don't."""
    hashes = {}
    for kind in ("NC_v3", "NC_v3d"):
        device(kind)
        for tokens in (1, 5, 128, 256):
            choices = itertools.product(
                (True, False), (kernels.DEFAULT_PLAN, kernels.Plan(gpsimd=False)), range(2)
            )
            for exact, plan, _ in choices:
                results = run(placeholders(tokens), "nki", exact=exact, plan=plan)
                key = (kind, tokens, plan, exact or tokens == 1)  # the step has but one form
                hashes.setdefault(key, set()).add(graph_hash(results, salted=True))
    assert len(hashes) == 28 and all(len(found) == 1 for found in hashes.values())
    assert len(set.union(*hashes.values())) == 28
    bare = {graph_hash(run(placeholders(5), "nki", exact=e), salted=False) for e in (True, False)}
    # torch-xla alone would mix the two up in one kind of node.
    assert len(bare) == (1 if node == "custom call" else 2)


def test_jit_compiles_each_kernel_once(monkeypatch):
    """The same through jit, with calls that the CPU can compile (of "Sharding", the identity)."""
    core = xla()._XLAC

    def launch(kernel, *operands, **static):
        config = json.dumps([kernel, static])
        call = core._xla_custom_call
        return tuple(
            call([x], "Sharding", [list(x.shape)], [x.dtype], False, config, 1, {})[0]
            for x in (operands[2], operands[5])
        )

    inputs = device_put(list(tensors(tokens=5, group=2)), "xla")

    def compiled(exact):
        before = core._xla_counter_value("UncachedCompile") or 0
        step = qwen35.jit(
            lambda *inputs: binding.gated_delta_rule(*inputs, exact=exact, launch=launch)
        )
        out, state = step(*inputs)
        assert torch.equal(device_put(out, "cpu"), device_put(inputs[2], "cpu"))
        assert torch.equal(device_put(state, "cpu"), device_put(inputs[5], "cpu"))
        return core._xla_counter_value("UncachedCompile") - before

    assert [compiled(exact) for exact in (True, False, True)] == [1, 1, 0]


# The choice.


def test_off_neuron_auto_is_portable_and_nki_says_what_is_missing():
    inputs = device_put(list(tensors(tokens=2)), "xla")
    step = qwen35.jit(lambda *inputs: run(inputs, "auto"))
    assert "custom-call" not in step.lower(*inputs)
    with pytest.raises(
        ValueError, match=r"^kernels='nki' needs tensors on a Neuron device, not on torch-xla's '"
    ):
        qwen35.jit(lambda *inputs: run(inputs, "nki")).lower(*inputs)


def test_neuron_without_nki(device, monkeypatch):
    device()
    monkeypatch.setitem(sys.modules, "nki", None)  # as if it were not installed
    inputs = placeholders(2)
    out, _ = run(inputs, "auto")
    assert "custom-call" not in xla()._XLAC._get_xla_tensors_hlo([out])
    with pytest.raises(ValueError, match=r"needs AWS's package nki, which could not be imported:"):
        run(inputs, "nki")


def test_an_empty_package_named_nki_is_not_nki(device, monkeypatch):
    """The public index has a placeholder of that name."""
    device()
    with stand_in.installed("custom call"):
        for name in ("nki.isa", "nki.language"):
            monkeypatch.delitem(sys.modules, name)
        with pytest.raises(ValueError, match=r"could not be imported: .*nki"):
            run(placeholders(2), "nki")


def test_cpu_tensors_on_a_machine_with_neuron(node):
    inputs = tensors(tokens=2)
    for mine, theirs in zip(run(inputs, "auto"), run(inputs, "portable"), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(ValueError, match="not on 'cpu'"):
        run(inputs, "nki")


@pytest.mark.parametrize("choice", ["auto", "nki"])
def test_another_neuron_device_than_trainium2_is_refused(device, choice):
    device("NC_v2")
    with stand_in.installed("custom call"):
        with pytest.raises(ValueError, match=r"Trainium2.*NC_v3 or NC_v3d, not 'NC_v2'"):
            run(placeholders(2), choice)


def test_head_sizes_are_refused_before_the_graph_is_made(node):
    sizes = {**SIZES, "key_size": 24}
    inputs = [lowering.placeholder(x) for x in tensors(tokens=2, **sizes)]
    with pytest.raises(ValueError, match="not 24 for keys"):
        run(inputs, "auto")


def test_the_emulator_refuses_xla_tensors():
    params = device_put(qwen35.init_params(WIDE), "xla").with_runtime(kernels="emulator")
    state = qwen35.init_state(params, 1, 8)
    tokens = device_put(torch.tensor([[1, 2]], dtype=torch.int32), "xla")
    for step in (qwen35.prefill, qwen35.jit(qwen35.prefill)):
        with pytest.raises(ValueError, match=r"computes on the host.*'xla' tensors or be traced"):
            step(params, state, tokens)


def test_the_stand_in_leaves_nothing_behind(device):
    device()
    before = dict(sys.modules)
    with stand_in.installed("custom call"):
        run(placeholders(2), "nki")
        assert "nki" in sys.modules and hasattr(kernels, "nki_chunk")
    assert not {name for name in set(sys.modules) - set(before) if "nki" in name}
    assert not hasattr(kernels, "nki_chunk")
