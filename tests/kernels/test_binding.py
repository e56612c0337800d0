"""Which kernel runs for the model's delta rule, on what, and that the model does not notice.

The emulator runs the kernels here. That the same calls reach Neuron's graph is for
test_neuron_graph; that the kernels are right, for test_nki_*.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from calling import CONFIG, SIZES, Recorder, run, tensors

import qwen35
from qwen35 import Config, kernels
from qwen35.kernels import binding, emulator, host, oracle, portable
from qwen35.xla import trees

BOUND = 1e-5  # relative; the kernels' own in float32


def rule(inputs, launch, exact=True):
    return binding.gated_delta_rule(*inputs, exact=exact, launch=launch)


@pytest.mark.parametrize("heads", [(1, 1), (1, 3), (2, 4)])
@pytest.mark.parametrize("tokens", [1, 2, 31, 128, 129, 300])
def test_the_kernels_agree_with_the_definition_and_with_portable(tokens, heads):
    key_heads, group = heads[0], heads[1] // heads[0]
    inputs = oracle.inputs(
        batch=2,
        tokens=tokens,
        key_heads=key_heads,
        group=group,
        cosine=0.8,
        decay="mixed",
        beta=(0.1, 1.0),
        **SIZES,
    )
    out, state = run(map(torch.from_numpy, inputs))
    expected = oracle.delta_rule(*inputs)
    other = run(map(torch.from_numpy, inputs), "portable")
    for mine, theirs, truth in zip((out, state), other, expected, strict=True):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        assert oracle.relative_error(mine, truth) < BOUND
        assert oracle.relative_error(mine, theirs) < 2 * BOUND


@pytest.mark.parametrize(
    ("tokens", "kernel", "shape"),
    [
        (1, binding.STEP, (2,)),
        (2, binding.CHUNK, (2, 2)),
        (128, binding.CHUNK, (2, 128)),
        (129, binding.PREFILL, (2, 256)),
        (256, binding.PREFILL, (2, 256)),
        (257, binding.PREFILL, (2, 384)),
    ],
)
def test_which_kernel_runs_on_how_many_tokens(tokens, kernel, shape):
    recorder = Recorder()
    rule(tensors(batch=2, tokens=tokens), recorder)
    static = binding.Plan()._asdict()
    if kernel != binding.STEP:
        static |= {"exact": True}
    assert recorder.calls == [(kernel, shape, static)]


@pytest.mark.parametrize(
    ("limit", "shapes"),
    [
        (30, [(3, 640)]),
        (8, [(3, 128)] * 4 + [(3, 88)]),
        (4, [(2, 128)] * 4 + [(2, 88)] + [(1, 256)] * 2 + [(1, 88)]),
        (2, ([(1, 128)] * 4 + [(1, 88)]) * 3),
    ],
)
def test_more_than_a_call_takes_is_split_over_rows_then_tokens(limit, shapes, monkeypatch):
    """Chunks times rows times the two value heads are at most `limit`."""
    monkeypatch.setattr(binding, "CHUNKS_OF_A_CALL", limit)
    inputs = oracle.inputs(batch=3, tokens=600, group=2, cosine=0.5, **SIZES)
    recorder = Recorder(host.launch)
    results = rule(map(torch.from_numpy, inputs), recorder)
    assert [call[1] for call in recorder.calls] == shapes
    for mine, truth in zip(results, oracle.delta_rule(*inputs), strict=True):
        assert oracle.relative_error(mine, truth) < BOUND


@pytest.mark.parametrize(("batch", "tokens"), [(1, 4096), (21, 129), (22, 128), (64, 5000)])
def test_no_call_is_over_the_kernels_limit(batch, tokens):
    """The 27B layer unsplit, 48 value heads, without data."""
    heads = torch.empty(batch, tokens, 48, 128, device="meta")
    gates = heads[..., 0]
    state = torch.empty(batch, 48, 128, 128, device="meta")
    recorder = Recorder()
    out, new_state = rule(
        (heads[:, :, :16], heads[:, :, :16], heads, gates, gates, state), recorder
    )
    assert out.shape == heads.shape and new_state.shape == state.shape
    work = [rows * -(-length // 128) * 48 for _, (rows, length), _ in recorder.calls]
    assert max(work) <= 1024
    assert sum(work) == batch * -(-tokens // 128) * 48, "no call has more padding than the last"


def test_the_limits_are_the_kernels_own():
    source = emulator.load("nki_fused", "gated_delta_prefill").function.__globals__
    assert binding.CHUNK_TOKENS == source["CHUNK"]
    assert binding.CHUNKS_OF_A_CALL == source["MOST"]
    assert binding.HEADS_PER_KEY_HEAD == source["LANES"]


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("size", [8, 16, 24, 32, 64, 128, 256])
def test_head_sizes(tokens, size):
    """Refused are exactly those that the kernels refuse."""
    for key_size, value_size in ((size, 16), (16, size)):
        inputs = tensors(tokens=tokens, key_size=key_size, value_size=value_size)
        shapes = [x.numpy() if tokens > 1 else x.numpy()[:, 0] for x in inputs[:5]]
        kernel = binding.STEP if tokens == 1 else binding.CHUNK
        if size in binding.HEAD_SIZES:
            run(inputs)
            continue
        numbers = f"{key_size} for keys and {value_size} for values"
        with pytest.raises(ValueError, match=rf"16, 32, 64, 128, not {numbers}; kernels='portable"):
            run(inputs)
        with pytest.raises(AssertionError, match="size must be"):
            emulator.simulate(emulator.load(*kernel), *shapes, inputs[5].numpy())


def test_value_heads_per_key_head():
    run(tensors(tokens=2, group=8))
    nine = tensors(tokens=2, group=9)
    with pytest.raises(ValueError, match="1 to 8 value heads for each key head, not 9 for 1"):
        run(nine)
    with pytest.raises(AssertionError, match="too many value heads"):
        host.launch(binding.CHUNK, *nine)
    query, key, value, *gates, state = tensors(tokens=2, key_heads=2, group=2)
    gates = [x[..., :3] for x in gates]
    with pytest.raises(ValueError, match="not 3 for 2"):
        run((query, key, value[:, :, :3], *gates, state[:, :3]))
    many = [torch.empty(1, 2, 1032, 16, device="meta")] * 3
    gates = [torch.empty(1, 2, 1032, device="meta")] * 2
    with pytest.raises(ValueError, match="up to 1024 value heads, not 1032"):
        rule((*many, *gates, torch.empty(1, 1032, 16, 16, device="meta")), Recorder())


@pytest.mark.parametrize("tokens", [1, 5, 130])
def test_dtypes(tokens):
    """bfloat16 reaches the kernels as it is, any other dtype as float32; the value's comes back."""
    inputs = oracle.inputs(tokens=tokens, group=2, decay="mixed", **SIZES)
    rounded = [oracle.bfloat16(x) for x in inputs[:3]] + list(inputs[3:])
    low = [torch.from_numpy(x).bfloat16() for x in inputs[:3]]
    out, state = run((*low, *map(torch.from_numpy, inputs[3:])))
    expected, expected_state = oracle.delta_rule(*rounded)
    assert out.dtype == torch.bfloat16 and state.dtype == torch.float32
    seen = []
    rule(
        (*low, *map(torch.from_numpy, inputs[3:])),
        lambda kernel, *x, **_: seen.extend(x) or (x[2], x[5]),
    )
    assert [x.dtype for x in seen] == [torch.bfloat16] * 3 + [torch.float32] * 3
    assert oracle.relative_error(state, expected_state) < BOUND
    assert oracle.relative_error(out.float(), expected) < 2**-8  # its own rounding

    wide = [torch.from_numpy(x).double() for x in inputs]
    out, state = run(wide)
    assert out.dtype == torch.float64 and state.dtype == torch.float32
    assert oracle.relative_error(out, oracle.delta_rule(*inputs)[0]) < BOUND


@pytest.mark.parametrize("tokens", [5, 130])
def test_exact_chooses_the_operands_of_products(tokens):
    inputs = oracle.inputs(tokens=tokens, cosine=0.8, **SIZES)
    truth, _ = oracle.delta_rule(*inputs)
    errors = [
        oracle.relative_error(run(map(torch.from_numpy, inputs), exact=exact)[0], truth)
        for exact in (True, False)
    ]
    assert errors[0] < BOUND and BOUND < errors[1] < 1e-2


def test_padding_and_inputs_stay_as_they_are():
    """What the binding adds after the last token leaves the state bit for bit."""
    inputs = tensors(tokens=130, group=2)
    still = (*inputs[:3], torch.zeros_like(inputs[3]), torch.zeros_like(inputs[4]), inputs[5])
    copies = [x.clone() for x in still]
    assert torch.equal(run(still)[1], inputs[5])
    assert all(map(torch.equal, still, copies))


def test_decays_of_a_step_are_float32_near_1_whatever_the_devices_exp(monkeypatch):
    """Where a decay is near 1 its error counts many times: there no exp of the device is used."""
    log_decay = torch.cat([torch.zeros(1), -torch.logspace(-7, 2, 4001), torch.tensor([-1e9])])
    true = log_decay.double().exp()
    found = binding.decay_of(log_decay)
    assert found.dtype == torch.float32 and found[0] == 1 and found[-1] == 0
    assert ((found - true).abs() <= 1.2e-7 * true + 1e-38).all()

    exp = torch.Tensor.exp
    monkeypatch.setattr(torch.Tensor, "exp", lambda x: exp(x) * (1 + 1.5e-5))
    coarse = binding.decay_of(log_decay)
    # What a state holds after many tokens of one decay a is a multiple of 1 / (1 - a).
    steady = (coarse.double() - true).abs() / (1 - true).clamp(min=1e-7)
    slow = log_decay > -1
    assert steady[log_decay < -1e-3].max() < 6e-5
    assert torch.equal(coarse[log_decay > -0.5], found[log_decay > -0.5]) and slow.sum() > 1000
    plain = (log_decay[slow].exp().double() - true[slow]).abs() / (1 - true[slow]).clamp(min=1e-7)
    assert plain.max() > 1e-2, "the device's exp alone would be felt"


def test_gradients_are_refused():
    inputs = tensors(tokens=2)
    inputs[2].requires_grad_()
    with pytest.raises(ValueError, match=r"no backward pass.*no_grad.*portable"):
        run(inputs)
    with torch.no_grad():
        run(inputs)


@pytest.mark.parametrize("tokens", [1, 70])
def test_portable_and_auto_on_the_cpu(tokens):
    inputs = tensors(tokens=tokens, group=2)
    expected = run(inputs, "portable")
    if tokens == 1:
        direct = portable.gated_delta_step(*(x[:, 0] for x in inputs[:5]), inputs[5])
    else:
        direct = portable.gated_delta_prefill(*inputs, chunk=64)
    for mine, automatic, theirs in zip(expected, run(inputs, "auto"), direct, strict=True):
        assert torch.equal(mine, automatic) and torch.equal(mine.flatten(), theirs.flatten())


def test_nki_off_neuron_and_unknown_names_are_refused():
    inputs = tensors(tokens=1)
    with pytest.raises(ValueError, match=r"kernels='nki' needs tensors on a Neuron device.*'cpu'"):
        run(inputs, "nki")
    with pytest.raises(ValueError, match="'emulator', not 'fast'"):
        run(inputs, "fast")
    with pytest.raises(ValueError, match=r"'emulator' computes on the host.*'meta'"):
        run([x.to("meta") for x in inputs])


# The whole model on the emulator.


@pytest.fixture(scope="module")
def params():
    """Random weights, wide: each layer moves the logits."""
    generator = torch.Generator().manual_seed(0)

    def draw(tensor):
        scale = 2 * tensor.shape[0] ** -0.5 if tensor.dim() == 2 else 0.5
        return scale * torch.randn(tensor.shape, generator=generator)

    return trees.map_tensors(draw, qwen35.init_params(Config.from_dict(CONFIG)))


@torch.no_grad()
def generate(params, kernels):
    """Ragged prefill of three rows, a second one of a few tokens, six greedy steps; a row starts
    late and one pauses. Logits of every step, tokens, final recurrent states."""
    params = params.with_runtime(kernels=kernels)
    state = qwen35.init_state(params, 3, 192)
    prompt = torch.randint(61, (3, 137), generator=torch.Generator().manual_seed(1))
    logits, state = qwen35.prefill(params, state, prompt[:, :131], torch.tensor([131, 40, 0]))
    seen = [logits]
    logits, state = qwen35.prefill(params, state, prompt[:, 131:], torch.tensor([6, 2, 5]))
    tokens = []
    for step in range(6):
        seen.append(logits)
        tokens.append(logits.argmax(-1))
        active = torch.tensor([True, step != 3, True])
        logits, state = qwen35.decode(params, state, tokens[-1], active)
    states = [layer.recurrent for layer in state.layers if hasattr(layer, "recurrent")]
    return torch.stack(seen), torch.stack(tokens), torch.stack(states)


def test_the_model_on_the_emulator_gives_the_portable_logits_and_tokens(params, monkeypatch):
    expected_logits, expected_tokens, expected_states = generate(params, "portable")
    recorder = Recorder(host.launch)
    with monkeypatch.context() as patch:
        patch.setattr(host, "launch", recorder)
        logits, tokens, states = generate(params, "emulator")
    kinds = [kernel for kernel, _, _ in recorder.calls]
    layers = 3
    assert kinds == layers * [binding.PREFILL] + layers * [binding.CHUNK] + 6 * layers * [
        binding.STEP
    ]
    assert all(static.get("exact", True) for _, _, static in recorder.calls)
    assert expected_logits.abs().max() > 1
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-4)
    assert torch.equal(tokens, expected_tokens)
    assert oracle.relative_error(states, expected_states) < BOUND

    # A kernel that gave nothing would show: the comparison is not of what passes by.
    with monkeypatch.context() as patch:
        patch.setattr(host, "launch", lambda kernel, *x, **_: (torch.zeros_like(x[2]), x[5]))
        without, _, _ = generate(params, "emulator")
    assert (without - expected_logits).abs().max() > 0.1


def test_a_bfloat16_model_lets_the_kernels_multiply_in_16_bits(params, monkeypatch):
    recorder = Recorder(host.launch)
    monkeypatch.setattr(host, "launch", recorder)
    low = trees.map_tensors(lambda x: x.bfloat16() if x.dim() == 2 else x, params)
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected, _ = qwen35.prefill(low, qwen35.init_state(low, 1, 8), tokens)
        low = low.with_runtime(kernels="emulator")
        logits, _ = qwen35.prefill(low, qwen35.init_state(low, 1, 8), tokens)
    assert [static["exact"] for _, _, static in recorder.calls] == [False] * 3
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


def test_kernels_import_nothing_of_the_rest_but_torch_xlas_private_names():
    root = Path(kernels.__file__).parent
    outside = []
    for path in root.rglob("*.py"):
        depth = len(path.relative_to(root).parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                if node.level > depth:
                    outside.append((path.name, ast.unparse(node)))
                assert node.level or not node.module.startswith("qwen35"), path
            elif isinstance(node, ast.Import):
                assert not any(name.name.startswith("qwen35") for name in node.names), path
    only = "from ..xla import private"
    assert sorted(outside) == [("loop.py", only), ("neuron.py", only)]


def test_the_folder_imports_as_a_package_without_a_parent():
    """In the repository's root transformers takes it for a package `kernels` of others."""
    folder = Path(kernels.__file__).resolve().parent
    code = "import kernels; print(kernels.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder.parent, check=True, capture_output=True, text=True
    )
    assert Path(done.stdout.strip()) == folder / "__init__.py"


def test_the_runtimes_plan_reaches_every_kernel(params, monkeypatch):
    recorder = Recorder(host.launch)
    monkeypatch.setattr(host, "launch", recorder)
    plan = binding.Plan(gpsimd=False, float16=False)
    tokens = torch.tensor([[1, 2, 3]])
    logits = {}
    for name in (plan, binding.DEFAULT_PLAN):
        low = params.with_runtime(kernels="emulator", kernel_plan=name)
        with torch.no_grad():
            _, state = qwen35.prefill(low, qwen35.init_state(low, 1, 8), tokens)
            logits[name], _ = qwen35.decode(low, state, tokens[:, 0])
    assert [static["gpsimd"] for _, _, static in recorder.calls] == [False] * 6 + [True] * 6
    assert [static["float16"] for _, _, static in recorder.calls] == [False] * 6 + [True] * 6
    # Of float32: the engine changes no bit, and there are no 16-bit operands.
    assert torch.equal(logits[plan], logits[binding.DEFAULT_PLAN])


# --- as operators of torch ------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "heads"), [(torch.float32, (1, 3)), (torch.bfloat16, (2, 4))])
@pytest.mark.parametrize("kernel", binding.KERNELS)
def test_an_operator_is_functional_and_says_what_it_gives(kernel, dtype, heads):
    """torch's own check of custom operators: nothing is modified or aliased that the schema does
    not say, and shapes, dtypes and strides without values are those with."""
    tokens = () if kernel is binding.STEP else (5 if kernel is binding.CHUNK else 128,)
    key_heads, value_heads = heads
    query, key = torch.randn(2, 1, *tokens, key_heads, 16).to(dtype)
    value = torch.randn(1, *tokens, value_heads, 16).to(dtype)
    decay, beta = torch.rand(2, 1, *tokens, value_heads)
    state = torch.randn(1, value_heads, 16, 16)
    decay = decay if kernel is binding.STEP else -decay
    operator = getattr(torch.ops.qwen35, f"emulated_{kernel.function}").default
    names = ("test_schema", "test_faketensor")
    for exact in (True, False):
        operands = (query, key, value, decay, beta, state, exact)
        torch.library.opcheck(operator, operands, test_utils=names)


@pytest.mark.parametrize(("tokens", "kernel"), [(1, binding.STEP), (5, binding.CHUNK)])
def test_a_captured_graph_has_a_node_for_each_layers_kernel(tokens, kernel):
    """And it takes what the layer has: results are the emulator's, bit for bit."""
    params = qwen35.init_params(
        Config.from_dict(CONFIG), runtime=qwen35.Runtime(kernels="emulator")
    )
    layers = params.config.layer_types.count("linear_attention")
    with torch.no_grad():  # a state of each layer's own, so that no other would do
        empty = qwen35.init_state(params, 2, 16)
        _, state = qwen35.prefill(params, empty, torch.tensor([[7, 8], [9, 6]]))
    read = qwen35.jit(qwen35.prefill, backend="aot_eager")
    ids = torch.arange(2 * tokens).reshape(2, tokens)
    text = read.lower(params, state, ids)
    calls = re.findall(r"torch\.ops\.qwen35\.(\w+)\(", text)
    assert calls == [f"emulated_{kernel.function}"] * layers
    logits, new = read(params, state, ids)
    with torch.no_grad():
        expected, wanted = qwen35.prefill(params, state, ids)
    assert torch.equal(logits, expected)
    for mine, theirs in zip(new.layers, wanted.layers, strict=True):
        assert all(map(torch.equal, mine, theirs))
