"""Calls of the delta rule as the model makes them, for the tests of its binding to the kernels."""

import torch

from qwen35 import kernels
from qwen35.kernels import oracle

# A tiny model: three layers with DeltaNet and one with attention.
CONFIG = {
    "model_type": "qwen3_5_text",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [1, 1, 0],
        "mrope_interleaved": True,
    },
    "full_attention_interval": 4,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
    "eos_token_id": 3,
}

SIZES = {"key_size": 16, "value_size": 32}


def tensors(**options):
    return tuple(torch.from_numpy(x) for x in oracle.inputs(**{**SIZES, **options}))


def run(inputs, implementation="emulator", **options):
    return kernels.gated_delta_rule(*inputs, chunk=64, implementation=implementation, **options)


class Recorder:
    """A launcher that notes what it is given, and has `run` (or nothing) compute the results."""

    def __init__(self, run=None):
        self.run, self.calls = run, []

    def __call__(self, kernel, *operands, **static):
        self.calls.append((kernel, tuple(operands[0].shape[:-2]), static))
        if self.run:
            return self.run(kernel, *operands, **static)
        return operands[2].clone(), operands[5].clone()
