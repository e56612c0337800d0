"""A needle in up to 32,768 tokens: found as transformers finds it, by every way through the state.

The models are random but made so that one early token decides what the last one says, each by one
way only. "attention" has DeltaNet layers that forget within a few tokens, and sharp attention:
the needle is in the KV cache. "deltanet" has no attention, decays that take a share of what is
remembered over the whole length, and gates that do not write the haystack's tokens: the needle is
in the first layer's matrices.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
from torch.utils import _pytree as pytree
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

import qwen35
from qwen35.files.materialize import abstract_params

LINEAR, FULL = "linear_attention", "full_attention"
VOCABULARY = 64
CHUNK = 512


class Case(NamedTuple):
    """kinds of the layers; seed of the weights; log of the decay rates; what is added to the norms
    of queries and keys, and what the projection to the writing strengths is multiplied with; the
    haystack's tokens, two needles, and the two questions at the end."""

    kinds: tuple[str, ...]
    seed: int
    a_log: float
    sharpness: float
    gate: float
    hay: tuple[int, ...]
    needles: tuple[int, int]
    questions: tuple[int, int]


CASES = {
    "attention": Case((FULL, LINEAR, LINEAR), 3, 1.5, 5, 1, (0, 1, 2, 3), (33, 39), (52, 52)),
    "deltanet": Case((LINEAR, LINEAR), 2, -11, 0, 20, (12, 16, 25, 42), (33, 45), (54, 54)),
}


class Models(NamedTuple):
    case: Case
    theirs: Qwen3_5ForCausalLM
    ours: qwen35.Params

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """What transformers says after each of the last two of tokens [B, T]."""
        with torch.no_grad():
            return self.theirs(tokens, use_cache=False, logits_to_keep=2).logits

    def prompt(self, length: int, needle: int) -> torch.Tensor:
        """A haystack of `length` tokens, the needle at a third, and the two questions."""
        generator = torch.Generator().manual_seed(0)
        places = torch.randint(len(self.case.hay), (length,), generator=generator)
        tokens = torch.tensor(self.case.hay)[places]
        tokens[length // 3] = needle
        return torch.cat([tokens, torch.tensor(self.case.questions)])


@pytest.fixture(scope="module")
def models(text_config, perturb_model, tmp_path_factory):
    """models(name): both models of a case."""

    @functools.cache
    def build(name: str) -> Models:
        case = CASES[name]
        # Little is rotated: at what distance the needle stands must not decide whether it is seen.
        rope = {"partial_rotary_factor": 0.125, "mrope_section": [1, 0, 0]}
        rope = text_config("equal_heads")["rope_parameters"] | rope
        config = Qwen3_5TextConfig(
            **text_config(
                "equal_heads",
                rope_parameters=rope,
                vocab_size=VOCABULARY,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=len(case.kinds),
                layer_types=list(case.kinds),
                num_attention_heads=1,
                num_key_value_heads=1,
                linear_num_key_heads=1,
                linear_num_value_heads=2,
                max_position_embeddings=32769,  # and one token after them
                eos_token_id=None,
            ),
            attn_implementation="sdpa",  # 32,768 x 32,768 scores are too many to hold
        )
        model = Qwen3_5ForCausalLM(config).eval()
        perturb_model(model, case.seed)
        with torch.no_grad():
            for tensor_name, tensor in model.named_parameters():
                if tensor_name.endswith("A_log"):
                    tensor.fill_(case.a_log)
                elif tensor_name.endswith(("q_norm.weight", "k_norm.weight")):
                    tensor.add_(case.sharpness)
                elif tensor_name.endswith("in_proj_b.weight"):
                    tensor.mul_(case.gate)
        directory = tmp_path_factory.mktemp(name)
        model.save_pretrained(directory)
        return Models(case, model, qwen35.load(directory))

    return build


def read(params, state, tokens, capacity):
    """The state after tokens [B, T] in chunks; the KV cache grows by powers of two as they come."""
    for start in range(0, tokens.shape[1], CHUNK):
        end = min(start + CHUNK, tokens.shape[1])
        while state.capacity is not None and end > state.capacity:
            state = qwen35.grow(state, min(2 * state.capacity, capacity))
        _, state = qwen35.prefill(params, state, tokens[:, start:end])
    return state


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize(
    "length",
    [1024, pytest.param(8192, marks=pytest.mark.slow), pytest.param(32768, marks=pytest.mark.slow)],
)
def test_a_needle_is_found_again(models, letters, tmp_path, name, length):
    model = models(name)
    params = model.ours
    hay = length - 2
    prompts = torch.stack([model.prompt(hay, needle) for needle in model.case.needles])
    expected = model.logits(prompts)  # after the question, and after the one that follows
    scale = expected.abs().max()
    assert (expected[0] - expected[1]).abs().amax(-1).min() > 0.1 * scale, "the needle decides"

    def close(logits, wanted):
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4 * scale)

    # Read in chunks by a cache that grows, kept in a file, and gone on with from there.
    state = read(params, qwen35.init_state(params, 2, CHUNK), prompts[:, :hay], length)
    qwen35.save_state(tmp_path / "state", params, state)
    state = qwen35.load_state(tmp_path / "state", params, capacity=length).state
    for place in (0, 1):
        logits, state = qwen35.decode(params, state, prompts[:, hay + place])
        close(logits, expected[:, place])

    # By the engine: cold; going on from a hit; with the other needle, where a hit must end before.
    engine = qwen35.Engine(
        params,
        letters,
        slots=1,
        capacity=length + 1,
        prefill_chunk=CHUNK,
        snapshot_every=length // 8,
        top_logprobs=VOCABULARY,
    )
    sampling = qwen35.Sampling(logprobs=VOCABULARY)
    for row, place, known in ((0, 0, 0), (0, 1, hay + 1), (1, 0, 2 * (length // 8))):
        prompt = prompts[row, : hay + 1 + place].tolist()
        request = engine.submit(prompt, max_new_tokens=1, sampling=sampling)
        list(engine.stream(request))
        assert request.cached_tokens == known
        said = torch.empty(VOCABULARY)
        for token, logprob in request.logprobs[0].top:
            said[token] = logprob
        close(said, expected[row, place].log_softmax(-1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_of_a_long_context_is_the_formulas(dtype):
    """0.8B at 32,768 tokens: 6 layers' keys and values, and 18 layers' matrices at any length."""
    params = abstract_params(qwen35.presets["0.8b"].text_only(), dtype=dtype)
    size = {"float32": 4, "bfloat16": 2}[dtype]
    per_token = 6 * 2 * (2 * 256) * size
    matrices = 18 * (16 * 128 * 128 * 4 + 3 * (3 * 16 * 128) * size)
    for capacity in (1, 32768):
        state = qwen35.init_state(params, batch=1, capacity=capacity)
        total = sum(leaf.nbytes for leaf in pytree.tree_leaves(state))
        assert total == per_token * capacity + matrices + 2 * 4  # two positions
