"""Quantised checkpoints of others: every published form gives the values that it stands for."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree
from transformers import AutoModelForCausalLM, Qwen3_5ForCausalLM, Qwen3_5TextConfig

import qwen35
from qwen35.files.quantized import open_weight, scheme_of
from qwen35.files.quantized.kept import leaf
from qwen35.files.tensor_file import TensorFile
from qwen35.forms import JoinedWeight, QuantizedWeight, is_special
from qwen35.forms import dense as to_dense
from qwen35.sharding.mesh import Mesh

sys.path.insert(0, str(Path(__file__).parent))  # lets this file import the module beside it

import published_forms as forms

CASE = "attention_first_explicit_types"
# Sizes of whole blocks and groups of 128, and sizes that end within one.
WHOLE = {
    "vocab_size": 132, "hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 8,
    "num_key_value_heads": 8, "linear_num_key_heads": 4,
    "linear_num_value_heads": 8, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
}  # fmt: skip
PARTIAL = WHOLE | {"hidden_size": 200, "intermediate_size": 328, "linear_value_head_dim": 40}

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
FP8 |= {"weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head", "no.such.module"]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


def compressed(form, **weights):
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"} | weights
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"],
        "config_groups": {"group_0": group}, "quantization_status": "compressed",
    }  # fmt: skip


EVERY = ("in_proj_qkv", "in_proj_z", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj",
         "gate_proj", "up_proj", "down_proj")  # fmt: skip
MLP = EVERY[-3:]
float8 = {"num_bits": 8, "type": "float"}
# name: (quantization_config, writer of a weight, its arguments, the projections it is written for)
FORMS = {
    "fp8": (FP8, forms.fp8_blocks, {}, EVERY),
    "fp8, float32 scales": (FP8, forms.fp8_blocks, {"scale_dtype": torch.float32}, EVERY),
    "fp8, some": (FP8, forms.fp8_blocks, {}, ("in_proj_z", "k_proj", "up_proj")),
    "fp8 per channel": (
        compressed("float-quantized", **float8, strategy="channel"), forms.fp8_channels, {}, EVERY
    ),
    "fp8 per channel, flat": (
        compressed("float-quantized", **float8, strategy="channel"), forms.fp8_channels,
        {"flat": True, "scale_dtype": torch.float32}, EVERY,
    ),
    "fp8 per tensor": (
        compressed("float-quantized", **float8, strategy="tensor"), forms.fp8_tensor, {}, EVERY
    ),
    "fp8 blocks of compressed-tensors": (
        compressed("float-quantized", **float8, strategy="block", block_structure=[128, 128]),
        forms.fp8_blocks, {"scale": "weight_scale"}, EVERY,
    ),
    "int8": (
        compressed("int-quantized", num_bits=8, strategy="channel"), forms.int8_channels, {}, EVERY
    ),
    "int8, zeros": (
        compressed("int-quantized", num_bits=8, strategy="channel", symmetric=False),
        forms.int8_channels, {"symmetric": False}, EVERY,
    ),
    "int8 packed": (
        compressed("pack-quantized", num_bits=8, strategy="channel"), forms.packed,
        {"bits": 8, "group": None}, EVERY,
    ),
    "int8 packed, zeros": (
        compressed("pack-quantized", num_bits=8, group_size=32, symmetric=False), forms.packed,
        {"bits": 8, "group": 32, "symmetric": False}, EVERY,
    ),
    "int4 packed, 128": (
        compressed("pack-quantized", group_size=128), forms.packed, {"group": 128}, EVERY
    ),
    "int4 packed, 32": (
        compressed("pack-quantized", group_size=32), forms.packed,
        {"group": 32, "scale_dtype": torch.float16}, EVERY,
    ),
    "int4 packed, zeros": (
        compressed("pack-quantized", group_size=32, symmetric=False), forms.packed,
        {"group": 32, "symmetric": False}, EVERY,
    ),
    "int4 packed, channel": (
        compressed("pack-quantized", strategy="channel"), forms.packed, {"group": None}, EVERY
    ),
    "gptq": (GPTQ, forms.gptq, {}, MLP),
    "gptq, 32, zeros": (
        GPTQ | {"group_size": 32, "sym": False}, forms.gptq, {"group": 32, "symmetric": False}, MLP
    ),
    "gptq, second form": (
        GPTQ | {"checkpoint_format": "gptq_v2"}, forms.gptq, {"form": "gptq_v2", "order": False},
        MLP,
    ),
    "gptq, 8 bits": (GPTQ | {"bits": 8}, forms.gptq, {"bits": 8}, MLP),
    "awq": (AWQ, forms.awq, {}, EVERY),
    "awq, 32": (AWQ | {"group_size": 32}, forms.awq, {"group": 32}, EVERY),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(text_config, perturb_model):
    """model(sizes): a random model of transformers."""
    made = {}

    def build(sizes):
        key = json.dumps(sizes)
        if key not in made:
            config = Qwen3_5TextConfig(**text_config(CASE, **sizes), attn_implementation="eager")
            made[key] = Qwen3_5ForCausalLM(config).eval()
            perturb_model(made[key], seed=0)
        return made[key]

    return build


@pytest.fixture
def write(model, tmp_path):
    """write(form, sizes): a quantised checkpoint's directory and its values by name, in float64."""

    def build(form, sizes=WHOLE, rename=lambda name: name):
        content, writer, arguments, projections = FORMS[form]
        model(sizes).save_pretrained(tmp_path)
        tensors, values = {}, {}
        for name, tensor in load_file(tmp_path / "model.safetensors").items():
            values[name] = tensor.double()
            stem = name.removesuffix("weight")
            if name.split(".")[-2] in projections:
                parts, values[name] = writer(tensor, **arguments)
                tensors |= {rename(stem) + part: one for part, one in parts.items()}
            else:
                tensors[rename(name)] = tensor
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        edit_config(tmp_path, quantization_config=content)
        return tmp_path, values

    return build


def edit_config(directory, **changes):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def assert_same_params(actual, expected):
    for a, b in zip(leaves(actual), leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert torch.equal(to_dense(a), to_dense(b))


def leaves(params):
    return pytree.tree_leaves(params, is_leaf=is_special)


@pytest.fixture
def dense(model, tmp_path_factory):
    """dense(values, sizes): the directory of a checkpoint of these values, in float32."""

    def build(values, sizes=WHOLE):
        directory = tmp_path_factory.mktemp("dense")
        model(sizes).save_pretrained(directory)
        plain = {name: value.float().contiguous() for name, value in values.items()}
        save_file(plain, directory / "model.safetensors", metadata={"format": "pt"})
        return directory

    return build


@pytest.mark.parametrize("sizes", [WHOLE, PARTIAL], ids=["whole", "partial"])
@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_the_form(write, dense, form, sizes):
    """Exactly: the product of a code and a scale is rounded once."""
    directory, values = write(form, sizes)
    plain = dense(values, sizes)
    for dtype in ("float32", "bfloat16"):
        exact = qwen35.load(plain, dtype=dtype)
        for weights in ("dense", None):
            ours = qwen35.load(directory, dtype=dtype, weights=weights)
            assert_same_params(ours, exact)
            assert any(map(is_special, leaves(ours))) == (weights is None)


@pytest.mark.parametrize("form", ["int4 packed, 32", "gptq, 32, zeros", "awq, 32"])
@pytest.mark.parametrize(
    "inputs",
    [
        [(0, 0, 320)],
        [(0, 32, 64), (64, 96, 224)],
        [(0, 6, 10), (10, 40, 2)],
        [(0, 3, 5), (5, 9, 1)],
    ],
    ids=["all", "groups", "pairs", "odd"],
)
def test_shares_of_4_bits_are_those_of_the_whole(form, inputs, tmp_path):
    """Whether they begin between two bytes of the file or within one."""
    content, writer, arguments, _ = FORMS[form]
    drawn = torch.randn(1000, 320, generator=torch.Generator().manual_seed(0))
    parts, values = writer(drawn, **arguments)
    save_file(parts, tmp_path / "one.safetensors")
    file = TensorFile(tmp_path / "one.safetensors")
    slices = {name: file.get_slice(name) for name in parts}
    weight = open_weight((1000, 320), slices, scheme_of({"quantization_config": content}))
    outputs = [(0, 5, 700), (700, 800, 100)]
    size = sum(length for *_, length in inputs)
    share = leaf(weight, inputs, outputs, (size, 800), torch.float32)
    rows = torch.cat([torch.arange(start, start + length) for _, start, length in outputs])
    columns = torch.cat([torch.arange(start, start + length) for _, start, length in inputs])
    assert share.kind == "int4" and share.values.shape == (size // 2, 800)
    assert torch.allclose(to_dense(share).double(), values[rows][:, columns].T, rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_kept_takes_the_bytes_of_the_file(write, form):
    """A byte for a value or half of one, and no scale for every value; what is not quantised, and
    stands beside what is, stays a tensor."""
    directory, _ = write(form)
    bits = (
        4
        if "int4" in form or ("8 bits" not in form and FORMS[form][1] in (forms.gptq, forms.awq))
        else 8
    )
    for layer in qwen35.load(directory).layers:
        parts = layer.gate_up.parts if isinstance(layer.gate_up, JoinedWeight) else (layer.gate_up,)
        for part in parts:
            if isinstance(part, QuantizedWeight):
                assert part.values.nbytes == part.shape[0] * part.shape[1] * bits // 8
                assert part.scales.numel() * 32 <= part.shape[0] * part.shape[1]
        if FORMS[form][3] is EVERY:
            assert isinstance(layer.down, QuantizedWeight)
            assert isinstance(layer.gate_up, QuantizedWeight)
            joined = isinstance(layer.in_proj, JoinedWeight)
            assert joined == hasattr(layer, "a_log")


@pytest.mark.parametrize("form", ["fp8", "int4 packed, 32", "gptq", "awq"])
@pytest.mark.parametrize("weights", [None, "dense"])
def test_logits_are_those_of_transformers_on_the_values(write, model, form, weights):
    directory, values = write(form, PARTIAL)
    reference = model(PARTIAL)
    before = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    reference.load_state_dict({name: value.float() for name, value in values.items()})
    try:
        tokens = torch.randint(131, (2, 70), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = reference(tokens, use_cache=False).logits
        params = qwen35.load(directory, weights=weights)
        hidden, _ = qwen35.forward(params, qwen35.init_state(params, 2, 70), tokens)
        ours = qwen35.logits(params, hidden)
    finally:
        reference.load_state_dict(before)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_fp8_is_as_transformers_dequantises_it(write):
    """Its own reader has no partial blocks."""
    from transformers import FineGrainedFP8Config

    directory, _ = write("fp8")
    reference = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        quantization_config=FineGrainedFP8Config(dequantize=True),
    )
    tokens = torch.randint(131, (2, 70), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference.eval()(tokens, use_cache=False).logits
    params = qwen35.load(directory)
    hidden, _ = qwen35.forward(params, qwen35.init_state(params, 2, 70), tokens)
    torch.testing.assert_close(qwen35.logits(params, hidden), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("bits", "group", "symmetric"),
    [(4, 128, True), (4, 32, False), (8, None, True), (8, 32, False)],
)
def test_packing_is_that_of_the_library_compressed_tensors(write, bits, group, symmetric):
    """The library unpacks and dequantises what is read here to the same values."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import pack_quantized
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.quant_args import QuantizationArgs

    weight = torch.randn(96, 256, generator=torch.Generator().manual_seed(0))
    parts, values = forms.packed(weight, bits=bits, group=group, symmetric=symmetric)
    strategy = "channel" if group is None else "group"
    arguments = QuantizationArgs(
        num_bits=bits, group_size=group, symmetric=symmetric, strategy=strategy
    )
    zero = None
    if not symmetric:
        shape = (96, parts["weight_scale"].shape[1])
        zero = pack_quantized.unpack_from_int32(
            parts["weight_zero_point"], bits, shape, packed_dim=0
        )
    codes = pack_quantized.unpack_from_int32(parts["weight_packed"], bits, weight.shape)
    scale = parts["weight_scale"].float()
    found = dequantize(codes, scale, zero, arguments, dtype=torch.float32)
    assert torch.equal(found, values.float())


def shard(directory, parts=3):
    """Rewrites as shards with an index, so that a weight and its scales stand in several files."""
    single = directory / "model.safetensors"
    tensors, weight_map = load_file(single), {}
    single.unlink()
    for i in range(parts):
        file = f"model-{i + 1:05d}-of-{parts:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[i::parts]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("form", ["fp8", "int4 packed, zeros", "gptq"])
def test_shards_and_multimodal_names(write, form):
    directory, _ = write(form)
    whole = qwen35.load(directory)
    tensors = load_file(directory / "model.safetensors")
    renamed = {
        name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, directory / "model.safetensors", metadata={"format": "pt"})
    assert_same_params(qwen35.load(directory), whole)
    shard(directory)
    assert_same_params(qwen35.load(directory), whole)


@pytest.mark.parametrize("quantized", [False, True])
def test_tensors_of_multi_token_prediction_are_skipped(write, quantized):
    directory, _ = write("fp8")
    whole = qwen35.load(directory)
    tensors = load_file(directory / "model.safetensors")
    weight = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    parts = forms.fp8_blocks(weight)[0] if quantized else {"weight": weight}
    tensors |= {f"mtp.layers.0.mlp.up_proj.{name}": part for name, part in parts.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    assert_same_params(qwen35.load(directory), whole)


@pytest.mark.parametrize("form", FORMS)
def test_a_rank_has_its_share_of_the_values(write, dense, form):
    """Also where its share begins within a block, a group or a word."""
    directory, values = write(form, WHOLE | {"intermediate_size": 408})
    plain = dense(values, WHOLE | {"intermediate_size": 408})
    for rank in range(2):
        runtime = qwen35.Runtime(mesh=Mesh(tp=2), rank=rank)
        expected = qwen35.load(plain, runtime=runtime)
        for weights in ("dense", None):
            ours = qwen35.load(directory, runtime=runtime, weights=weights)
            assert_same_params(ours, expected)


@pytest.mark.parametrize("form", ["fp8", "gptq"])
def test_what_is_kept_moves_is_saved_and_computes_on_xla(write, tmp_path_factory, form):
    directory, _ = write(form)
    kept, plain = qwen35.load(directory), qwen35.load(directory, weights="dense")
    saved = tmp_path_factory.mktemp("saved")
    qwen35.save(kept, saved)
    assert_same_params(qwen35.load(saved), plain)
    there = qwen35.load(directory, device="xla")
    tokens = torch.randint(131, (1, 9), generator=torch.Generator().manual_seed(0))
    expected, _ = qwen35.prefill(plain, qwen35.init_state(plain, 1, 9), tokens)
    for params in (there, qwen35.device_put(kept, "xla")):
        state = qwen35.init_state(params, 1, 9)
        ours, _ = qwen35.jit(qwen35.prefill)(params, state, qwen35.device_put(tokens, "xla"))
        torch.testing.assert_close(ours.cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("weights", ["int3", "Dense", 8])
def test_an_unknown_form_of_weights_is_refused(write, weights):
    directory, _ = write("fp8")
    with pytest.raises(ValueError, match="weights must be None or one of 'dense', 'int8'"):
        qwen35.load(directory, weights=weights)


# Refusals


def refusal(directory, **options):
    with pytest.raises(qwen35.CheckpointError) as error:
        qwen35.load(directory, **options)
    return str(error.value)


NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (compressed("nvfp4-pack-quantized", **NVFP4), "nvfp4-pack-quantized"),
        (compressed("mixed-precision", **NVFP4), "float values of 4 bits"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4 of 'modelopt'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "4 bit of 'bitsandbytes'"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"group_size": 64, "bits": 4, "mode": "affine"}, "mlx"),
        (GPTQ | {"desc_act": True}, "GPTQ with desc_act"),
        (GPTQ | {"bits": 3}, "GPTQ of 3 bits"),
        (AWQ | {"version": "gemv"}, "AWQ of the version 'gemv'"),
        (compressed("marlin-24"), "marlin-24"),
    ],
)
def test_another_scheme_is_refused_in_a_sentence(write, content, named):
    directory, _ = write("fp8")
    edit_config(directory, quantization_config=content)
    if named == "mlx":
        edit_config(directory, quantization=content)
    text = refusal(directory)
    assert named in text and "not read" in text
    assert len(text) < 400


def edit(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


STEM = "model.layers.0.mlp.up_proj."


def test_scattered_groups_are_refused(write):
    directory, _ = write("gptq, 32, zeros")
    edit(directory, lambda t: t[STEM + "g_idx"].copy_(t[STEM + "g_idx"].flip(0)))
    assert STEM + "g_idx: groups that are scattered" in refusal(directory)


@pytest.mark.parametrize(
    ("form", "part", "change", "said"),
    [
        ("fp8", "weight_scale_inv", lambda t: t[:2], r"weight_scale_inv has shape [2, 2]"),
        ("fp8", "weight_scale_inv", None, "weight has dtype F8_E4M3"),
        ("fp8", "weight", None, "weight is missing"),
        ("int4 packed, 32", "weight_shape", lambda t: t + 1, "weight_shape says [385, 257]"),
        ("int4 packed, 32", "weight_scale", lambda t: t[:, :3], "weight_scale has shape [384, 3]"),
        ("int4 packed, 32", "weight_packed", lambda t: t.long(), "weight_packed has dtype I64"),
        ("gptq", "qzeros", None, "qzeros is missing"),
        ("awq", "scales", lambda t: t.int(), "scales has dtype I32"),
    ],
)
def test_what_does_not_fit_is_named(write, form, part, change, said):
    directory, _ = write(form)

    def damage(tensors):
        if change is None:
            del tensors[STEM + part]
        else:
            tensors[STEM + part] = change(tensors[STEM + part]).contiguous()

    edit(directory, damage)
    assert said in refusal(directory).replace(STEM, "")


def test_quantised_tensors_without_a_configuration(write):
    directory, _ = write("fp8")
    edit_config(directory, quantization_config=None)
    text = refusal(directory)
    assert "config.json tells no quantisation" in text
    assert len(text) < 4000


@pytest.mark.parametrize("part", ["weight", "weight_scale_inv"])
def test_a_nan_in_a_code_or_a_scale_is_found(write, part):
    directory, _ = write("fp8")

    def damage(tensors):
        tensors[STEM + part].view(torch.uint8)[-1, -1] = 0x7F

    edit(directory, damage)
    if part == "weight_scale_inv":
        edit(directory, lambda t: t[STEM + part].fill_(float("inf")))
    for weights in (None, "dense"):
        assert "NaN or infinite" in refusal(directory, weights=weights)
    qwen35.load(directory, check_finite=False)
