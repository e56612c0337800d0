"""Config: fields, resolution, derived sizes, refusals; the oracle is transformers' own config."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from transformers import Qwen3_5Config, Qwen3_5ForCausalLM, Qwen3_5TextConfig

import qwen35
from qwen35.model.declarations import declarations, declare

LINEAR, FULL = "linear_attention", "full_attention"

# The published 27B file, with the keys that this project has no use for left in.
PUBLISHED_TEXT = {
    "model_type": "qwen3_5_text",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_output_gate": True,
    "dtype": "bfloat16",
    "eos_token_id": 248044,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 17408,
    "layer_types": ([LINEAR] * 3 + [FULL]) * 16,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_value_head_dim": 128,
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 262144,
    "mtp_num_hidden_layers": 1,
    "num_attention_heads": 24,
    "num_hidden_layers": 64,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 248320,
}
PUBLISHED = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5",
    "image_token_id": 248056,
    "video_token_id": 248057,
    "vision_start_token_id": 248053,
    "vision_end_token_id": 248054,
    "tie_word_embeddings": False,
    "text_config": PUBLISHED_TEXT,
    "vision_config": {
        "model_type": "qwen3_5",
        "deepstack_visual_indexes": [],
        "depth": 27,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 4304,
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 5120,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
MINIMAL = {
    "model_type": "qwen3_5_text",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Names that both sides use; the rope fields are compared apart.
SHARED = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "linear_conv_kernel_dim",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "layer_types",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
]


def text(**changes):
    return {**MINIMAL, **changes}


def multimodal(text_changes=None, **changes):
    return {
        "model_type": "qwen3_5",
        "text_config": text(**(text_changes or {})),
        "vision_config": {**PUBLISHED["vision_config"], "out_hidden_size": 64},
        **changes,
    }


def plain(value):
    return list(value) if isinstance(value, tuple) else value


def assert_as_transformers(ours: qwen35.Config, theirs: Qwen3_5TextConfig) -> None:
    for name in SHARED:
        assert plain(getattr(ours, name)) == getattr(theirs, name), name
    rope = theirs.rope_parameters
    assert ours.rope_theta == rope["rope_theta"]
    assert ours.partial_rotary_factor == rope["partial_rotary_factor"]
    if "mrope_section" in rope:
        assert list(ours.mrope_section) == rope["mrope_section"]


def test_published_fields():
    config = qwen35.Config.from_dict(PUBLISHED)
    assert_as_transformers(config, Qwen3_5Config(**PUBLISHED).text_config)
    assert config.num_hidden_layers == 64
    assert config.rope_theta == 10_000_000
    assert config.mrope_section == (11, 11, 10)
    assert config.max_position_embeddings == 262144
    assert config.eos_token_id == 248044


def test_published_vision_fields():
    vision = qwen35.Config.from_dict(PUBLISHED).vision
    theirs = Qwen3_5Config(**PUBLISHED).vision_config
    for field in dataclasses.fields(vision):
        if field.name != "rope_theta":
            assert getattr(vision, field.name) == getattr(theirs, field.name), field.name
    assert vision.rope_theta == 10000.0
    assert vision.hidden_size // vision.num_heads == 72


def test_text_only_file_equals_the_text_part_of_a_multimodal_one():
    alone = qwen35.Config.from_dict(PUBLISHED_TEXT)
    inside = qwen35.Config.from_dict(PUBLISHED)
    assert alone.vision is None
    assert dataclasses.replace(inside, vision=None, extra=()) == dataclasses.replace(
        alone, extra=()
    )


def test_what_transformers_writes_reads_back(case):
    assert_as_transformers(qwen35.Config.from_pretrained(case.directory), case.config)


def test_what_transformers_writes_for_the_multimodal_model_reads_back(tmp_path):
    theirs = Qwen3_5Config(**multimodal())
    theirs.save_pretrained(tmp_path)
    ours = qwen35.Config.from_pretrained(tmp_path)
    assert_as_transformers(ours, theirs.text_config)
    assert ours.vision.depth == theirs.vision_config.depth


def test_defaults_are_those_of_transformers():
    assert_as_transformers(qwen35.Config.from_dict(MINIMAL), Qwen3_5TextConfig(**MINIMAL))


def test_token_id_defaults_are_those_of_transformers():
    ours, theirs = qwen35.Config.from_dict(multimodal()), Qwen3_5Config(**multimodal())
    for name in ("image", "video", "vision_start", "vision_end"):
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")


def test_token_ids_come_from_the_file():
    ids = {
        "image_token_id": 11,
        "video_token_id": 12,
        "vision_start_token_id": 13,
        "vision_end_token_id": 14,
    }
    config = qwen35.Config.from_dict(multimodal(**ids))
    assert {name: getattr(config, name) for name in ids} == ids


@pytest.mark.parametrize("eos", [None, 7, [7, 9]])
def test_end_tokens(eos):
    config = qwen35.Config.from_dict(text(eos_token_id=eos, bos_token_id=1, pad_token_id=2))
    assert plain(config.eos_token_id) == eos
    assert (config.bos_token_id, config.pad_token_id) == (1, 2)
    hash(config)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [LINEAR, LINEAR, LINEAR, FULL] * 2),
        ({"full_attention_interval": 2}, [LINEAR, FULL] * 4),
        ({"full_attention_interval": 1}, [FULL] * 8),
        ({"full_attention_interval": 9}, [LINEAR] * 8),
        ({"full_attention_interval": 3}, [LINEAR, LINEAR, FULL] * 2 + [LINEAR] * 2),
        ({"layer_types": [FULL] + [LINEAR] * 7}, [FULL] + [LINEAR] * 7),
        ({"layer_types": [LINEAR] * 8, "full_attention_interval": 2}, [LINEAR] * 8),
    ],
)
def test_layer_pattern(changes, expected):
    config = qwen35.Config.from_dict(text(**changes))
    assert list(config.layer_types) == expected
    assert Qwen3_5TextConfig(**text(**changes)).layer_types == expected


ROPE = {"rope_type": "default", "mrope_interleaved": True}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_theta": 5e5},
        {"partial_rotary_factor": 0.5},
        {"rope_theta": 5e5, "partial_rotary_factor": 0.5},
        {"rope_parameters": {**ROPE, "rope_theta": 1e7, "partial_rotary_factor": 0.25}},
        {"rope_parameters": {**ROPE, "rope_theta": 1e7}, "partial_rotary_factor": 0.5},
        {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}, "rope_theta": 1e6},
        {"rope_parameters": {**ROPE, "rope_theta": 1e7}, "rope_theta": 1e3},
        {"rope_scaling": {"rope_type": "default", "mrope_section": [11, 11, 10]}},
        {"rope_scaling": {"type": "default", "mrope_section": [16, 8, 8]}, "rope_theta": 1e6},
    ],
)
def test_rope_spellings_resolve_as_in_transformers(changes):
    """`rope_parameters` of transformers 5 against the older keys beside it or instead of it."""
    config = qwen35.Config.from_dict(text(**changes))
    assert_as_transformers(config, Qwen3_5TextConfig.from_dict(text(**changes)))


@pytest.mark.parametrize("head_dim", [16, 32, 64, 128, 256, 512])
def test_missing_mrope_section_reads_the_position_rows_that_transformers_reads(head_dim):
    """transformers takes [11, 11, 10] whatever the head size; the choice of row per rotated pair
    must come out the same, and the section must sum to the pairs."""
    pairs = head_dim // 8
    section = qwen35.Config.from_dict(text(head_dim=head_dim)).mrope_section
    assert sum(section) == pairs

    def rows(section):
        chosen = [0] * pairs
        for row in (1, 2):
            for j in range(row, min(3 * section[row], pairs), 3):
                chosen[j] = row
        return chosen

    assert rows(section) == rows((11, 11, 10))


@pytest.mark.parametrize(
    ("top", "inner"), [(True, True), (True, False), (False, True), (False, False), (True, None)]
)
def test_tied_head_resolves_as_in_transformers(top, inner):
    """Where they disagree the top level decides: transformers' multimodal model reads that."""
    changes = {} if inner is None else {"tie_word_embeddings": inner}
    content = multimodal(changes, tie_word_embeddings=top)
    assert qwen35.Config.from_dict(content).tie_word_embeddings is top
    assert Qwen3_5Config(**content).tie_word_embeddings is top


@pytest.mark.parametrize("tied", [True, False])
def test_tied_head_of_a_text_only_file(tied):
    assert qwen35.Config.from_dict(text(tie_word_embeddings=tied)).tie_word_embeddings is tied


def test_derived_sizes():
    config = qwen35.Config.from_dict(PUBLISHED)
    assert config.key_dim == 16 * 128
    assert config.value_dim == 48 * 128
    assert config.conv_channels == 2 * 16 * 128 + 48 * 128
    assert config.rotary_dim == 64


def test_derived_sizes_follow_the_file():
    config = qwen35.Config.from_dict(
        text(
            linear_num_key_heads=3,
            linear_num_value_heads=9,
            linear_key_head_dim=20,
            linear_value_head_dim=12,
            head_dim=24,
            partial_rotary_factor=0.5,
        )
    )
    assert (config.key_dim, config.value_dim, config.conv_channels) == (60, 108, 228)
    assert config.rotary_dim == 12


# From the table of the published family: layers, hidden, MLP, query/KV heads, value/key heads.
FAMILY = {
    "0.8b": (24, 1024, 3584, 8, 2, 16, 16, True),
    "2b": (24, 2048, 6144, 8, 2, 16, 16, True),
    "4b": (32, 2560, 9216, 16, 4, 32, 16, True),
    "9b": (32, 4096, 12288, 16, 4, 32, 16, False),
    "27b": (64, 5120, 17408, 24, 4, 48, 16, False),
}


@pytest.mark.parametrize("name", FAMILY)
def test_presets(name):
    config = qwen35.presets[name]
    assert FAMILY[name] == (
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.linear_num_value_heads,
        config.linear_num_key_heads,
        config.tie_word_embeddings,
    )
    assert config.head_dim == 256
    assert config.linear_key_head_dim == config.linear_value_head_dim == 128
    assert config.vocab_size == 248320
    assert config.linear_conv_kernel_dim == 4
    assert config.rotary_dim == 64
    assert config.mrope_section == (11, 11, 10)
    assert list(config.layer_types) == [LINEAR, LINEAR, LINEAR, FULL] * (
        config.num_hidden_layers // 4
    )


def test_preset_names_are_these_five():
    assert sorted(qwen35.presets) == sorted(FAMILY)


@pytest.mark.parametrize("name", FAMILY)
def test_parameter_count_is_that_of_the_transformers_model(name):
    content = dataclasses.replace(qwen35.presets[name], vision=None).to_dict()
    with torch.device("meta"):
        model = Qwen3_5ForCausalLM(Qwen3_5TextConfig.from_dict(content))
    unique = {id(p): p.numel() for p in model.parameters()}
    assert qwen35.presets[name].parameter_count == sum(unique.values())


@pytest.mark.parametrize("name", ["27B", "Qwen/Qwen3.5-27B", "qwen3.5-27b", "27b"])
def test_presets_have_other_spellings(name):
    assert qwen35.presets[name] == qwen35.presets["27b"]
    assert list(qwen35.presets) == ["0.8b", "2b", "4b", "9b", "27b"]


@pytest.mark.parametrize("name", ["28b", "Qwen/Qwen3-27B", "Other/Qwen3.5-27B", ""])
def test_no_preset_is_a_key_error(name):
    with pytest.raises(KeyError):
        qwen35.presets[name]


def test_parameter_count_is_that_of_the_declarations(case):
    """The two that know the tensors: the sum in closed form, and their declarations one by one."""
    config = qwen35.Config.from_pretrained(case.directory)
    shapes = [parameter.shape for parameter in declarations(declare(config))]
    assert config.parameter_count == sum(map(math.prod, shapes))


def test_27b_has_26_9_billion_parameters():
    assert round(qwen35.presets["27b"].parameter_count / 1e9, 1) == 26.9


def test_config_is_a_frozen_hashable_value():
    first, second = qwen35.Config.from_dict(PUBLISHED), qwen35.Config.from_dict(PUBLISHED)
    assert first == second
    assert hash(first) == hash(second)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.hidden_size = 1


def test_unknown_keys_are_kept_and_listed():
    content = {**PUBLISHED, "surprise": {"a": [1]}, "text_config": {**PUBLISHED_TEXT, "odd": 2.5}}
    names = [name for name, _ in qwen35.Config.from_dict(content).extra]
    assert "surprise" in names
    assert "text_config.odd" in names
    assert "text_config.mtp_num_hidden_layers" in names
    assert "vision_config.deepstack_visual_indexes" in names


@pytest.mark.parametrize("content", [PUBLISHED, PUBLISHED_TEXT, multimodal(), text()])
def test_to_dict_round_trip(content):
    """The dict is JSON, says the same, and transformers reads the same from it."""
    config = qwen35.Config.from_dict(content)
    written = json.loads(json.dumps(config.to_dict()))
    assert qwen35.Config.from_dict(written) == config
    theirs = (Qwen3_5Config if "text_config" in content else Qwen3_5TextConfig).from_dict(written)
    assert_as_transformers(config, theirs.get_text_config())
    assert theirs.tie_word_embeddings == config.tie_word_embeddings


def test_unknown_keys_survive_the_round_trip():
    content = {**PUBLISHED, "surprise": {"a": [1]}, "text_config": {**PUBLISHED_TEXT, "odd": 2.5}}
    written = qwen35.Config.from_dict(content).to_dict()
    assert written["surprise"] == {"a": [1]}
    assert written["text_config"]["odd"] == 2.5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 0}, ["hidden_size", "0"]),
        ({"hidden_size": -64}, ["hidden_size", "-64"]),
        ({"hidden_size": 64.5}, ["hidden_size", "64.5"]),
        ({"hidden_size": "64"}, ["hidden_size", "'64'"]),
        ({"vocab_size": True}, ["vocab_size", "True"]),
        ({"vocab_size": None}, ["vocab_size"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0"]),
        ({"linear_conv_kernel_dim": 0}, ["linear_conv_kernel_dim", "0"]),
        ({"num_attention_heads": 5}, ["num_attention_heads", "5", "2"]),
        ({"linear_num_key_heads": 3}, ["linear_num_value_heads", "32", "3"]),
        ({"head_dim": 12}, ["rotary", "3"]),
        ({"head_dim": 4, "partial_rotary_factor": 0.1}, ["rotary", "0"]),
        ({"partial_rotary_factor": 1.5}, ["partial_rotary_factor", "1.5"]),
        ({"partial_rotary_factor": 0.0}, ["partial_rotary_factor", "0"]),
        (
            {"rope_parameters": {**ROPE, "mrope_section": [11, 11, 11]}},
            ["mrope_section", "66", "64"],
        ),
        ({"rope_parameters": {**ROPE, "mrope_section": [16, 16]}}, ["mrope_section", "16"]),
        ({"rope_parameters": {**ROPE, "rope_theta": 0}}, ["rope_theta", "0"]),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, ["longrope"]),
        ({"layer_types": [FULL] * 7}, ["layer_types", "7", "8"]),
        ({"layer_types": [FULL] * 7 + ["mamba"]}, ["layer_types", "mamba"]),
        ({"layer_types": FULL}, ["layer_types"]),
        ({"full_attention_interval": 0}, ["full_attention_interval", "0"]),
        ({"rms_norm_eps": -1e-6}, ["rms_norm_eps", "-1e-06"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps", "nan"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "yes"]),
        ({"eos_token_id": "end"}, ["eos_token_id", "end"]),
        ({"max_position_embeddings": 0}, ["max_position_embeddings", "0"]),
        ({"num_hidden_layers": 10**8}, ["num_hidden_layers", "65536", "100000000"]),
        ({"num_hidden_layers": 10**8, "full_attention_interval": 4}, ["num_hidden_layers"]),
        ({"head_dim": 10**400}, ["head_dim", "2147483647", "…"]),
        ({"rms_norm_eps": 10**400}, ["rms_norm_eps", "…"]),
        ({"partial_rotary_factor": 10**400}, ["partial_rotary_factor", "…"]),
        ({"initializer_range": float("nan")}, ["initializer_range", "nan"]),
        ({"initializer_range": -1}, ["initializer_range", "-1"]),
        ({"eos_token_id": -1}, ["eos_token_id", "-1"]),
        ({"eos_token_id": [3, [4]]}, ["eos_token_id", "[4]"]),
        ({"bos_token_id": [3]}, ["bos_token_id", "(3,)"]),
        ({"pad_token_id": 1.0}, ["pad_token_id", "1.0"]),
        ({"layer_types": [[FULL]] * 8}, ["layer_types", "full_attention"]),
        ({"rope_parameters": [1]}, ["rope_parameters", "[1]"]),
        ({"rope_parameters": {**ROPE, "mrope_section": 3}}, ["mrope_section", "3"]),
        ({"rope_parameters": {**ROPE, "mrope_section": [32, 0, "0"]}}, ["mrope_section", "'0'"]),
        ({"rope_parameters": {**ROPE, "mrope_section": [2**70, 0, 0]}}, ["mrope_section"]),
        ({"hidden_size": "x" * 5000}, ["hidden_size", "…"]),
        ({"hidden_act": ["x"] * 5000}, ["hidden_act", "…"]),
        ({"rope_parameters": {"rope_type": "x" * 5000}}, ["rope_type", "…"]),
    ],
)
@pytest.mark.parametrize("form", ["text", "multimodal"])
def test_impossible_fields_are_refused_with_their_value(form, changes, says):
    content = text(**changes) if form == "text" else multimodal(changes)
    with pytest.raises(ValueError) as error:
        qwen35.Config.from_dict(content)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250
    for word in says:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_token_id": {}}, ["image_token_id", "{}"]),
        ({"video_token_id": -5}, ["video_token_id", "-5"]),
        ({"vision_config": [1]}, ["vision_config", "[1]"]),
        ({"vision_config": {"rope_parameters": [1]}}, ["vision_config.rope_parameters", "[1]"]),
        ({"vision_config": {"patch_size": [{}]}}, ["vision_config.patch_size", "{}"]),
        ({"vision_config": {"patch_size": []}}, ["vision_config.patch_size", "[]"]),
        ({"vision_config": {"patch_size": [14, 16]}}, ["vision_config.patch_size", "[14, 16]"]),
        ({"vision_config": {"depth": 10**8}}, ["vision_config.depth", "65536"]),
        ({"vision_config": {"rope_theta": "x"}}, ["vision_config.rope_theta", "'x'"]),
        ({"vision_config": {"initializer_range": True}}, ["vision_config.initializer_range"]),
        ({"vision_config": {"num_position_embeddings": 3}}, ["num_position_embeddings", "3"]),
        ({"text_config.hidden_size": 3}, ["text_config.hidden_size"]),
        ({"vision_config.depth": 3}, ["vision_config.depth"]),
    ],
)
def test_impossible_fields_beside_the_text_model_are_refused(changes, says):
    with pytest.raises(ValueError) as error:
        qwen35.Config.from_dict(multimodal(**changes))
    assert len(str(error.value)) < 250
    for word in says:
        assert word in str(error.value)


def test_unknown_keys_of_a_model_without_its_tower_are_its_own():
    """As a text model's: written, they stood in a section of their own, and read back as others."""
    content = {"model_type": "qwen3_5", "text_config": MINIMAL | {"new": 1, "both": "text"}}
    config = qwen35.Config.from_dict(content | {"both": "top", "above": 2})
    assert dict(config.extra) == {"new": "1", "both": '"text"', "above": "2"}
    assert qwen35.Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", ["image_token_id", "vision_end_token_id"])
def test_places_of_pictures_survive_without_a_tower(name):
    """They are refused in a text model's prompts: with the published ids in their place, that
    would be other tokens."""
    config = qwen35.Config.from_dict(PUBLISHED | {"vision_config": None, name: 77})
    written = config.to_dict()
    assert getattr(config, name) == 77 and written[name] == 77
    assert qwen35.Config.from_dict(json.loads(json.dumps(written))) == config
    others = {"image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"}
    assert not written.keys() & others - {name}


def test_unknown_keys_with_dots_rewrite_nothing():
    content = multimodal({"vision_config.depth": 5, "a.b": 6}, **{"c.d": 7})
    config = qwen35.Config.from_dict(content)
    written = config.to_dict()
    assert written["text_config"]["vision_config.depth"] == 5
    assert (written["text_config"]["a.b"], written["c.d"]) == (6, 7)
    assert qwen35.Config.from_dict(written) == config
    with pytest.raises(ValueError, match="depth' is no key"):
        config.text_only()  # whose file would have it outside of a section
    del content["vision_config"]
    with pytest.raises(ValueError, match="depth' is no key"):
        qwen35.Config.from_dict(content)
    alone = qwen35.Config.from_dict(text(**{"a.b": 6}))
    assert alone.to_dict()["a.b"] == 6


def test_what_acts_as_an_integer_is_one():
    """The file that such a configuration is saved to has plain numbers."""
    sizes = {"hidden_size": np.int32(64), "eos_token_id": [np.int64(7)], "bos_token_id": np.int8(1)}
    config = qwen35.Config.from_dict(text(**sizes))
    assert config == qwen35.Config.from_dict(text(hidden_size=64, eos_token_id=[7], bos_token_id=1))
    json.dumps(config.to_dict())


@pytest.mark.parametrize("name", [key for key in MINIMAL if key != "model_type"])
def test_missing_fields_are_named(name):
    content = {key: value for key, value in MINIMAL.items() if key != name}
    with pytest.raises(ValueError, match=name):
        qwen35.Config.from_dict(content)


def test_all_missing_fields_are_named_at_once():
    with pytest.raises(ValueError) as error:
        qwen35.Config.from_dict({"model_type": "qwen3_5_text"})
    assert all(name in str(error.value) for name in MINIMAL if name != "model_type")


@pytest.mark.parametrize(
    "content",
    [
        text(model_type="qwen3_5_moe_text"),
        text(model_type="qwen3"),
        multimodal(model_type="qwen3_5_moe"),
        multimodal({"model_type": "qwen3_5_moe_text"}),
        multimodal(model_type="llava"),
    ],
)
def test_another_architecture_is_refused_by_name(content):
    kinds = content["model_type"], content.get("text_config", {}).get("model_type")
    wrong = next(kind for kind in kinds if kind not in ("qwen3_5", "qwen3_5_text"))
    with pytest.raises(ValueError, match=wrong):
        qwen35.Config.from_dict(content)


@pytest.mark.parametrize("content", [[], "qwen", None, 3])
def test_what_is_no_object_is_refused(content):
    with pytest.raises(ValueError):
        qwen35.Config.from_dict(content)


@pytest.mark.parametrize(
    ("file", "says"),
    [(None, "config.json"), ("{", "config.json"), ("[]", "config.json"), ("\xff", "config.json")],
)
def test_unreadable_files_are_checkpoint_errors(tmp_path, file, says):
    if file is not None:
        (tmp_path / "config.json").write_text(file, encoding="latin-1")
    with pytest.raises(qwen35.CheckpointError, match=says):
        qwen35.Config.from_pretrained(tmp_path)


def test_no_such_directory(tmp_path):
    with pytest.raises(qwen35.CheckpointError, match="nowhere"):
        qwen35.Config.from_pretrained(tmp_path / "nowhere")


def test_bad_field_in_a_file_names_the_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(text(hidden_size=-1)))
    with pytest.raises(qwen35.CheckpointError, match=r"config\.json.*hidden_size.*-1"):
        qwen35.Config.from_pretrained(tmp_path)


def test_a_path_may_be_a_string(reference):
    directory = reference("equal_heads").directory
    assert qwen35.Config.from_pretrained(str(directory)) == qwen35.Config.from_pretrained(directory)
