"""YaRN: frequencies, attention scale and logits are transformers'.

Prompts with pictures are in test_prefill_pictures.

Tables are equal but for the last bit of a cosine (see parity/test_rope). Logits: 1e-4 absolute at a
standard deviation of 0.5, as in test_parity, whose cases have a model with YaRN too.
"""

import copy

import pytest
import torch
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextRotaryEmbedding

import qwen35
from qwen35.model.rope import rope_table

# As the published files have them; the card's recipe for a million tokens adds factor and type.
PUBLISHED = {
    "mrope_interleaved": True,
    "mrope_section": [11, 11, 10],
    "partial_rotary_factor": 0.25,
    "rope_theta": 10000000,
}
RECIPE = {"factor": 4.0, "original_max_position_embeddings": 262144}


def content(**changes):
    """A config.json of published head sizes."""
    return {
        "model_type": "qwen3_5_text",
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "max_position_embeddings": 262144,
        **changes,
    }


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def assert_as_transformers(given):
    """Tables at positions up to a million, in all three rows."""
    config = qwen35.Config.from_dict(copy.deepcopy(given))
    theirs = Qwen3_5TextRotaryEmbedding(Qwen3_5TextConfig.from_dict(copy.deepcopy(given)))
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(config.max_context, (3, 2, 200), generator=generator)
    expected = theirs(torch.zeros(()), positions)
    for ours, table in zip(rope_table(config, positions), expected, strict=True):
        pairs = table.shape[-1] // 2
        torch.testing.assert_close(ours, table[..., :pairs], rtol=0, atol=1e-7)
    return config


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {**PUBLISHED, **RECIPE, "rope_type": "yarn"}},
        {"rope_scaling": {**PUBLISHED, **RECIPE, "rope_type": "yarn"}},
        {"rope_scaling": {**RECIPE, "type": "yarn"}, "rope_theta": 1e7},
        {
            "rope_scaling": {"type": "yarn", "factor": 4.0, "mrope_section": [16, 8, 8]},
            "rope_theta": 1e6,
        },
        {"rope_parameters": {**PUBLISHED, **RECIPE, "rope_type": "yarn", "type": "mrope"}},
        {
            "rope_parameters": {**PUBLISHED, "rope_type": "yarn", "factor": 4.0},
            "original_max_position_embeddings": 65536,
        },
    ],
)
def test_spellings_resolve_as_in_transformers(changes):
    """`rope_parameters`, `rope_scaling`, and its older `type`."""
    config = assert_as_transformers(content(**changes))
    assert config.yarn.factor == 4 and config.max_context >= 262144


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_factor": 1.25},
        {"beta_fast": 16, "beta_slow": 2.5},
        {"beta_fast": None, "beta_slow": None, "attention_factor": None},
        {"mscale": 1.0, "mscale_all_dim": 0.5},
        {"mscale": 1.0, "mscale_all_dim": 0},
        {"mscale": 0.7},
        {"truncate": False},
        {"factor": 1.0},
        {"factor": 2},
        {"factor": None, "original_max_position_embeddings": 32768},
        {"original_max_position_embeddings": 7},  # every pair is slowed
        {"rope_theta": 100.0, "original_max_position_embeddings": 10**6},  # none is
    ],
)
def test_parameters_do_what_they_do_in_transformers(changes):
    rope = {**PUBLISHED, **RECIPE, "rope_type": "yarn", **changes}
    config = assert_as_transformers(content(rope_parameters=rope))
    again = qwen35.Config.from_dict(config.to_dict())
    assert again == config
    assert_as_transformers(config.to_dict())  # what `save` writes


def test_logits_near_a_million(text_config, perturb_model, tmp_path):
    """The last positions of a million, in two pieces and token by token; those of the first rows
    would be the same if positions were only counted from one another."""
    rope = {**PUBLISHED, **RECIPE, "rope_type": "yarn"}
    given = text_config("published_head_sizes", rope_parameters=rope)
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**given, attn_implementation="eager")).eval()
    perturb_model(model, seed=2)
    model.save_pretrained(tmp_path)
    params = qwen35.load(tmp_path)
    assert params.config.max_context == 2**20
    tokens = torch.randint(131, (1, 24), generator=torch.Generator().manual_seed(0))
    # Far apart and close together: an order that the frequencies tell from any other.
    positions = torch.cat(
        [torch.arange(6), torch.arange(500_000, 500_009), 2**20 - torch.arange(9, 0, -1)]
    )
    rows = positions.expand(3, 1, -1)  # a single row would say to transformers that texts begin
    with torch.no_grad():
        expected = model(tokens, position_ids=rows, use_cache=False).logits[0]
    state = qwen35.init_state(params, batch=1, capacity=24)
    hidden, half = qwen35.forward(params, state, tokens[:, :16], positions=rows[..., :16])
    more, after = qwen35.forward(params, half, tokens[:, 16:], positions=rows[..., 16:])
    assert_close(qwen35.logits(params, torch.cat([hidden, more], 1))[0], expected)
    assert after.position.item() == 24 and after.rope_offset.item() == 2**20 - 24
    for index in range(16, 24):
        token, row = tokens[:, index : index + 1], rows[..., index : index + 1]
        logits, half = qwen35.prefill(params, half, token, positions=row)
        assert_close(logits[0], expected[index])
    # Without YaRN the logits are others by far more than the tolerance.
    plain = Qwen3_5ForCausalLM(
        Qwen3_5TextConfig(**given | {"rope_parameters": PUBLISHED | {"rope_type": "default"}})
    )
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        other = plain.eval()(tokens, position_ids=rows, use_cache=False).logits[0]
    assert (other - expected).abs().amax(-1)[-8:].min() > 1e-2


@pytest.mark.parametrize("kind", ["linear", "dynamic", "longrope", "llama3", "ntk"])
def test_other_types_are_refused_by_name(kind):
    for key in ("rope_parameters", "rope_scaling"):
        with pytest.raises(ValueError, match=f"'{kind}' is not supported: known are .*'yarn'"):
            qwen35.Config.from_dict(content(**{key: {"rope_type": kind, "factor": 4.0}}))


@pytest.mark.parametrize(
    ("rope", "says"),
    [
        ({"factor": 0.5}, ["factor", "0.5"]),
        ({"factor": "4"}, ["factor", "'4'"]),
        ({"factor": 1e9}, ["factor", "1000000000.0", "2147483647"]),
        ({"factor": None, "original_max_position_embeddings": None}, ["yarn", "factor"]),
        ({"original_max_position_embeddings": 1.5}, ["original_max_position_embeddings", "1.5"]),
        ({"beta_fast": 1, "beta_slow": 2}, ["beta_fast 1", "beta_slow 2"]),
        ({"beta_fast": -1}, ["beta_fast", "-1"]),
        ({"attention_factor": float("nan")}, ["attention_factor", "nan"]),
        ({"truncate": "no"}, ["truncate", "'no'"]),
        ({"rope_theta": 1.0}, ["rope_theta", "1.0"]),
        ({"full_attention": {}}, ["kind of layer"]),
    ],
)
def test_impossible_parameters_are_refused_with_their_value(rope, says):
    with pytest.raises(ValueError) as error:
        qwen35.Config.from_dict(
            content(rope_parameters={**PUBLISHED, **RECIPE, "rope_type": "yarn", **rope})
        )
    for word in says:
        assert word in str(error.value)


def test_what_stands_where_no_model_reads_it_is_refused():
    """transformers reads the text model's rope from text_config alone, without a word."""
    given = {"model_type": "qwen3_5", "text_config": content(), "rope_scaling": {"type": "yarn"}}
    with pytest.raises(ValueError, match="'yarn' stand beside text_config"):
        qwen35.Config.from_dict(given)


def test_a_context_is_reached_by_what_it_takes():
    config = qwen35.Config.from_dict(content())
    assert config.extended(262144) is not None and config.extended(262144).yarn is None
    million = config.extended(1_000_000)
    assert million.yarn.factor == 1_000_000 / 262144 and million.max_context >= 1_000_000
    assert million.extended(5_000) == million
    longer = million.extended(2_000_000)
    assert longer.yarn.original_max_position_embeddings == 262144
    assert longer.max_context >= 2_000_000
    with pytest.raises(ValueError, match="context must be an integer"):
        config.extended(2**40)
