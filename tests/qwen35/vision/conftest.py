"""transformers' vision tower and ours with the same weights, in float32."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5VisionConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionModel

import qwen35
from qwen35.model.config import VisionConfig
from qwen35.model.declarations import declare
from qwen35.model.params import VisionParams


def perturb(model: torch.nn.Module) -> None:
    """Draws every weight anew, so that each tensor moves the result by more than rounding."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() == 1:
                mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                tensor.normal_(mean, 0.3, generator=generator)
            else:
                fan_in = 1 if "pos_embed" in name else math.prod(tensor.shape[1:])
                tensor.normal_(0, fan_in**-0.5, generator=generator)


@pytest.fixture(scope="session")
def build_tower(parameters_of) -> Callable[..., tuple[Qwen3_5VisionModel, VisionParams]]:
    """build_tower(sizes, forms, prepare): both towers; `prepare(model)` changes random weights."""

    def build(sizes: dict, forms: str = "plain", prepare=lambda model: None):
        config = Qwen3_5VisionConfig(**sizes, attn_implementation="eager")
        model = Qwen3_5VisionModel(config).eval()
        perturb(model)
        prepare(model)
        tensors = {f"model.visual.{name}": value for name, value in model.state_dict().items()}
        vision = VisionConfig(**sizes)
        text = qwen35.presets["0.8b"].text_only()
        whole = dataclasses.replace(text, hidden_size=vision.out_hidden_size, vision=vision)
        declared = declare(whole, qwen35.Runtime(forms=forms)).vision
        return model, parameters_of(declared, tensors)

    return build
