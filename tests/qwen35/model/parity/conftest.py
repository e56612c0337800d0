"""One layer of transformers' text model and ours with the same weights, module by module.

A file here holds one module to transformers' own, so that a broken parity says where it is. What a
module is given (norms, rotations, states) comes from transformers or is random, not from another
module of ours.
"""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from transformers import DynamicCache, Qwen3_5ForCausalLM, Qwen3_5TextConfig

import qwen35
from qwen35.forms import Plain
from qwen35.model.declarations import declare
from qwen35.model.params import AttentionLayer, DeltaNetLayer


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """A transformers model of one layer, with random weights in float32, and ours."""

    model: Qwen3_5ForCausalLM
    params: qwen35.Params

    @property
    def theirs(self) -> torch.nn.Module:
        """transformers' only layer."""
        return self.model.model.layers[0]

    @property
    def ours(self) -> DeltaNetLayer | AttentionLayer:
        """Our only layer."""
        return self.params.layers[0]

    @property
    def config(self) -> qwen35.Config:
        return self.params.config

    @property
    def forms(self) -> Plain:
        return self.params.forms

    def cache(self) -> DynamicCache:
        """An empty cache of transformers."""
        return DynamicCache(config=self.model.config)

    def rotations(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """transformers' cosines and sines [B, T, rotary_dim] of positions [B, T] or [3, B, T]."""
        three = positions if positions.dim() == 3 else positions.expand(3, -1, -1)
        return self.model.model.rotary_emb(torch.zeros(()), three)

    def inputs(self, batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
        """Random values [B, T, H] near 1, as they are after a norm."""
        return torch.randn(
            batch, tokens, self.config.hidden_size, generator=torch.Generator().manual_seed(seed)
        )


@pytest.fixture
def pair(forms, text_config, perturb_model, parameters_of) -> Callable[[str, str], Pair]:
    """pair(case, kind): one layer of a kind in the sizes of a case, under each of the forms."""

    def build(case: str, kind: str) -> Pair:
        content = text_config(case, num_hidden_layers=1, layer_types=[kind])
        model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**content, attn_implementation="eager")).eval()
        perturb_model(model, seed=5)
        model.requires_grad_(False)
        config = qwen35.Config.from_dict(content)
        declared = declare(config, qwen35.Runtime(forms=forms))
        return Pair(model, parameters_of(declared, model.state_dict()))

    return build
