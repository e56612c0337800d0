"""The oracle: tiny random Qwen3.5 models of transformers, in fp32, on its plain torch path.

Every case differs from the others in something that a port gets wrong. Weights are drawn wider
than transformers' initialiser draws them (which has zero norm weights and a constant `dt_bias`),
so that each tensor moves the logits by far more than the tests' tolerances;
`test_parity.test_every_tensor_matters` holds the cases to that.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig, logging

import qwen35
from qwen35.files.materialize import materialize
from qwen35.forms import SpacedWeight
from qwen35.generation import steps
from qwen35.model.declarations import Parameter
from qwen35.xla import compiled as compiled_functions

sys.path.insert(0, str(Path(__file__).parent))  # lets this file import the module beside it

from multimodal_oracle import multimodal, multimodal_params  # noqa: F401 - fixtures, by name

logging.set_verbosity_error()  # it warns that the fast kernels, which are not wanted here, miss
logging.disable_progress_bar()

LINEAR, FULL = "linear_attention", "full_attention"


@pytest.fixture
def nothing_compiled(monkeypatch):
    """Gives a test steps and towers that have compiled nothing: those of the process keep what
    other tests had compiled, which a test that counts would miss."""
    fresh = functools.cache(compiled_functions.Compiled)
    monkeypatch.setattr(compiled_functions, "_compiled", fresh)
    for name, step in vars(steps).items():
        if isinstance(step, compiled_functions.Compiled):
            monkeypatch.setattr(steps, name, fresh(step._function, step._donate))
    every = tuple(fresh(step._function, step._donate) for step in steps.ALL)
    monkeypatch.setattr(steps, "ALL", every)


def _rope(factor: float, section: list[int], theta: float = 10000.0) -> dict:
    return {
        "rope_type": "default",
        "rope_theta": theta,
        "partial_rotary_factor": factor,
        "mrope_section": section,
        "mrope_interleaved": True,
    }


_BASE = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "rope_parameters": _rope(0.25, [1, 1, 0]),
    "full_attention_interval": 4,
    "tie_word_embeddings": False,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": 3,
}

CASES: dict[str, dict] = {
    "equal_heads": {
        "linear_num_value_heads": 2,
        "num_key_value_heads": 4,
    },
    "value_heads_x2_tied": {
        "head_dim": 32,
        "linear_value_head_dim": 32,
        "rope_parameters": _rope(0.5, [3, 3, 2]),
        "full_attention_interval": 2,
        "tie_word_embeddings": True,
    },
    "value_heads_x3_gqa6_odd_hidden": {
        "hidden_size": 51,
        "intermediate_size": 77,
        "num_attention_heads": 6,
        "num_key_value_heads": 1,
        "head_dim": 24,
        "linear_num_value_heads": 6,
        "rope_parameters": _rope(0.25, [1, 1, 1]),
    },
    "attention_first_explicit_types": {
        "num_hidden_layers": 5,
        "layer_types": [FULL, LINEAR, LINEAR, FULL, LINEAR],
        "rope_parameters": _rope(0.5, [2, 1, 1], theta=100.0),
    },
    "conv2_wide_keys_tied": {
        "vocab_size": 97,
        "linear_conv_kernel_dim": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 8,
        "tie_word_embeddings": True,
    },
    "conv2_interval2_gqa6": {
        "hidden_size": 36,
        "linear_conv_kernel_dim": 2,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 3,
        "rope_parameters": _rope(0.5, [1, 1, 0], theta=1e6),
        "full_attention_interval": 2,
    },
    "yarn_beyond_16": {
        "head_dim": 32,
        "rope_parameters": _rope(0.5, [3, 3, 2])
        | {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16},
        "full_attention_interval": 2,
    },
    "published_head_sizes": {
        "hidden_size": 48,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 3,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "rope_parameters": _rope(0.25, [11, 11, 10], theta=1e7),
    },
    "large_eps_many_heads": {
        "rms_norm_eps": 1e-2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "tie_word_embeddings": True,
    },
    "only_deltanet": {
        "num_hidden_layers": 3,
        "layer_types": [LINEAR] * 3,
        "linear_num_value_heads": 6,
    },
    "only_attention": {
        "num_hidden_layers": 2,
        "layer_types": [FULL] * 2,
        "rope_parameters": _rope(0.5, [2, 1, 1]),
    },
}

# Seeds for which the greedy path of 64 steps has no near tie and transformers agrees with itself;
# test_parity.test_oracle_is_sound holds them to that.
SEEDS = {
    "equal_heads": 2,
    "value_heads_x2_tied": 2,
    "value_heads_x3_gqa6_odd_hidden": 4,
    "conv2_wide_keys_tied": 4,
    "large_eps_many_heads": 1,
    "only_deltanet": 1,
}


def perturb(model: torch.nn.Module, seed: int) -> None:
    """Draw every weight of a transformers model anew, wide, with activations and logits near 1.

    Norm weights stay positive after their `1 +` (a head whose norm is nearly zero would hide
    what is behind it); decays go from forgetting at once to hardly ever. What the layers add is
    kept below what the embedding brings: otherwise each norm magnifies the rounding of the layer
    before, and transformers' own prefill and decode drift apart by more than the tests allow.
    """
    generator = torch.Generator().manual_seed(seed)
    tied = model.config.get_text_config().tie_word_embeddings

    def scale(name: str, fan_in: int) -> tuple[float, float]:
        """Mean and standard deviation of a tensor's entries."""
        if name.endswith("linear_attn.norm.weight"):
            return 1.0, 0.3
        if name.endswith("language_model.norm.weight") or name == "model.norm.weight":
            return (-0.75, 0.1) if tied else (0.0, 0.3)  # logits near 1 despite a large embedding
        if name.endswith("norm.weight"):
            return 0.0, 0.3
        if name.endswith("dt_bias"):
            return -1.0, 1.0
        if name.endswith("bias"):
            return 0.0, 0.1
        if name.endswith("embed_tokens.weight"):
            return 0.0, (2.0 if tied else 4.0) * fan_in**-0.5
        if name.endswith(("out_proj.weight", "o_proj.weight", "lm_head.weight")):
            return 0.0, 0.5 * fan_in**-0.5
        return 0.0, fan_in**-0.5

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("A_log"):
                tensor.uniform_(-3.0, 1.5, generator=generator)
            else:
                mean, std = scale(name, math.prod(tensor.shape[1:]))
                tensor.normal_(mean, std, generator=generator)


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """A transformers model, what it says, and the directory that it was saved to."""

    name: str
    model: Qwen3_5ForCausalLM
    directory: Path

    @property
    def config(self) -> Qwen3_5TextConfig:
        return self.model.config

    def tokens(self, batch: int, length: int, seed: int = 0) -> torch.Tensor:
        """Random token ids [batch, length]."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.config.vocab_size, (batch, length), generator=generator)

    @torch.no_grad()
    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, T, V] of one pass over tokens [B, T]."""
        return self.model(tokens, use_cache=False).logits.float()

    def decode(self, tokens: torch.Tensor, start: int = 1) -> torch.Tensor:
        """The same logits, with tokens from `start` on fed one at a time."""
        pieces, feed = [], self._feeder()
        pieces.append(feed(tokens[:, :start]))
        for t in range(start, tokens.shape[1]):
            pieces.append(feed(tokens[:, t : t + 1]))
        return torch.cat(pieces, 1)

    @functools.cache  # noqa: B019 - a session has ten of these objects and two prompts each
    def greedy(self, length: int, steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A prompt [2, length], its greedy continuation [2, steps] and the logits that chose it.

        logits[:, i] are those that chose tokens[:, i].
        """
        prompt = self.tokens(2, length, seed=1)
        chosen, logits, feed, piece = [], [], self._feeder(), prompt
        for _ in range(steps):
            logits.append(feed(piece)[:, -1])
            chosen.append(logits[-1].argmax(-1))
            piece = chosen[-1][:, None]
        return prompt, torch.stack(chosen, 1), torch.stack(logits, 1)

    def _feeder(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function that takes the next tokens [B, T] and gives their logits [B, T, V]."""
        past, seen = None, []

        @torch.no_grad()
        def feed(piece: torch.Tensor) -> torch.Tensor:
            nonlocal past
            if FULL not in self.config.layer_types:  # transformers has no cache for such a model
                seen.append(piece)
                return self.logits(torch.cat(seen, 1))[:, -piece.shape[1] :]
            out = self.model(piece, past_key_values=past, use_cache=True)
            past = out.past_key_values
            return out.logits.float()

        return feed


@pytest.fixture(scope="session")
def text_config() -> Callable[..., dict]:
    """text_config(case, **overrides): the config.json of a case as a dict, as published files
    write it (with `full_attention_interval`, without `layer_types` unless the case names them)."""

    def build(case: str, **overrides) -> dict:
        return {"model_type": "qwen3_5_text", **_BASE, **CASES[case], **overrides}

    return build


@pytest.fixture(scope="session")
def reference(text_config, tmp_path_factory) -> Callable[[str], Reference]:
    """reference(case): the transformers model of a case, built and saved once per session."""

    @functools.cache
    def build(name: str) -> Reference:
        return made_of(text_config(name), name, tmp_path_factory.mktemp(name))

    return build


def made_of(config: dict, name: str, directory: Path) -> Reference:
    """A random transformers model of a configuration, saved to a directory."""
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**config, attn_implementation="eager")).eval()
    perturb(model, seed=SEEDS.get(name, 0))
    model.save_pretrained(directory)
    return Reference(name, model, directory)


@pytest.fixture(scope="session")
def two_layers(text_config, tmp_path_factory) -> Reference:
    """A model of one layer of each kind, for what takes seconds a layer."""
    name = "value_heads_x2_tied"
    config = text_config(name, num_hidden_layers=2)
    return made_of(config, name, tmp_path_factory.mktemp("two_layers"))


@pytest.fixture(scope="session")
def model_of_kinds(text_config, tmp_path_factory) -> Callable[[str], Reference]:
    """model_of_kinds("dda"): a model of two DeltaNet layers and one of attention, built once."""

    @functools.cache
    def build(kinds: str) -> Reference:
        types = [FULL if kind == "a" else LINEAR for kind in kinds]
        changes = {"num_hidden_layers": len(kinds), "layer_types": types}
        config = text_config("conv2_interval2_gqa6", **changes)
        return made_of(config, kinds, tmp_path_factory.mktemp("kinds"))

    return build


class _Letters:
    """A tokenizer of code points."""

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, tokens, skip_special_tokens=False):
        return "".join(map(chr, tokens))


@pytest.fixture(scope="session")
def letters() -> _Letters:
    """A tokenizer for random models, whose tokens are no text."""
    return _Letters()


@pytest.fixture(scope="session", params=list(CASES))
def case(request, reference) -> Reference:
    """Every case in turn."""
    return reference(request.param)


@pytest.fixture(scope="session")
def load(reference) -> Callable[..., qwen35.Params]:
    """load(case, device="cpu"): our parameters of a case, loaded once per session."""

    @functools.cache
    def build(name: str, device: str = "cpu") -> qwen35.Params:
        return qwen35.load(reference(name).directory, device=device)

    return build


@pytest.fixture(scope="session")
def perturb_model() -> Callable[[torch.nn.Module, int], None]:
    """perturb_model(model, seed): draw the weights of any transformers model as the cases do."""
    return perturb


@pytest.fixture(scope="session")
def parameters_of() -> Callable[..., qwen35.Params]:
    """parameters_of(declared, tensors): our parameters, made of a checkpoint's tensors by name.

    Under the forms of XLA:CPU linear weights are stored as on that device, a cache line apart, and
    computed with eagerly.
    """

    def build(declared, tensors):
        runtime = declared.runtime

        def make(parameter: Parameter) -> torch.Tensor | SpacedWeight:
            tensor = materialize(
                parameter, lambda source: tensors[source.name], torch.float32, {}, runtime
            )
            spaced = parameter.linear and runtime.forms == "xla_cpu"
            return SpacedWeight.of(tensor, 16) if spaced else tensor

        return pytree.tree_map(make, declared)

    return build


@pytest.fixture(params=["plain", "xla_cpu"])
def forms(request) -> str:
    """Every way of forming operations, in turn."""
    return request.param
