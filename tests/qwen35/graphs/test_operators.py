"""Which operators graphs for torch.compile hold, as docs/neuron.md lists them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import qwen35
from qwen35.files.materialize import abstract_params
from qwen35.graphs.operators import operators

PAGE = Path(__file__).resolve().parents[3] / "docs" / "neuron.md"


def listed(step: str) -> set[str]:
    """The operators of a step in the page's table."""
    [cell] = re.findall(rf"^\| {step} \| (`.*`) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    return {f"aten.{name}" for name in re.findall(r"`(\w+)`", cell)}


def test_operators_are_counted_as_the_backend_gets_them():
    def function(x, y, scale):
        return torch.nn.functional.silu(x @ y) * scale + (x @ y)

    x, y = torch.empty(2, 3, device="meta"), torch.empty(3, 4, device="meta")
    counts = {"aten.mm": 2, "aten.silu": 1, "aten.mul": 1, "aten.add": 1}
    assert operators(function, x, y, 2.0) == counts
    assert operators(lambda x: x, x) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["0.8b", "27b"])
def test_the_page_lists_the_operators_of_the_published_models(name):
    """Of one layer of each kind; the others are like them. Tied and untied heads, one to three
    value heads for a key head: what else there is changes shapes alone."""
    config = qwen35.presets[name].text_only()
    kinds = ("linear_attention", "full_attention")
    config = dataclasses.replace(config, num_hidden_layers=2, layer_types=kinds)
    params = abstract_params(config, dtype=torch.bfloat16)
    state = qwen35.init_state(params, 1, 512)
    tokens = torch.empty(1, 128, dtype=torch.int32, device="meta")
    common = listed("both")
    prefill = operators(qwen35.prefill, params, state, tokens, tokens[:, 0])
    assert set(prefill) == common | listed("prefill")
    decode = operators(qwen35.decode, params, state, tokens[:, 0])
    assert set(decode) == common | listed("decode")
