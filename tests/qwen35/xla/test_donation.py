"""Which argument's memory each result takes over, read from the HLO that XLA compiled."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import torch, qwen35

def append(key, value, new, position):
    # Same size in bytes, other shapes: XLA alone would pair key's memory with value's result.
    index = position.long()[:, None, None].expand(-1, 8, 1)
    key = key.scatter(2, index, new.transpose(1, 2))
    value = value.scatter(1, index.transpose(1, 2), new)
    return (new @ key @ value).sum(), key, value

step = qwen35.jit(append, donate=("key", "value"))
key, value = torch.zeros(2, 8, 64), torch.zeros(2, 64, 8)
new, position = torch.ones(2, 1, 8), torch.tensor([3, 5])
total, key, value = step(*qwen35.device_put((key, value, new, position), "xla"))
assert value.cpu()[0, 3].eq(1).all() and key.cpu()[1, :, 5].eq(1).all()
assert value.cpu().sum() == 16 and key.cpu().sum() == 16
"""


def test_results_take_the_memory_of_arguments_of_their_shape(tmp_path: Path) -> None:
    environment = {"XLA_FLAGS": f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"}
    subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, env=environment, capture_output=True
    )
    [text] = (
        text
        for file in tmp_path.glob("*cpu_after_optimizations.txt")
        if "scatter" in (text := file.read_text())
        or "input_output_alias" in text.partition("\n")[0]
    )
    header = text.partition("\n")[0]
    aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}", header)
    assert len(aliases) == 2
    arguments, results = re.search(
        r"entry_computation_layout=\{\((.*?)\)->\((.*?)\)\}", header
    ).groups()
    arguments, results = (re.findall(r"\w+\[[\d,]*\]", side) for side in (arguments, results))
    for result, argument in aliases:
        assert results[int(result)] == arguments[int(argument)]
    # A pair that does not fit shows as a copy of the whole cache.
    assert not re.search(r"f32\[2,(8,64|64,8)\]\S* copy\(%p", text)


DECODE = """
import dataclasses, sys, torch, qwen35

config = dataclasses.replace(
    qwen35.presets["0.8b"].text_only(),
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    layer_types=("linear_attention",) * 3 + ("full_attention",),
    linear_num_key_heads=2,
    linear_num_value_heads=4,
)
params = qwen35.init_params(config, device="xla")
state = qwen35.init_state(params, 3, 128)
token = qwen35.device_put(torch.zeros(3, dtype=torch.int64), "xla")
active = qwen35.device_put(torch.tensor([True, False, True]), "xla")
arguments = (token, active) if sys.argv[1] == "active" else (token,)
qwen35.jit(qwen35.decode, donate=("state",)).compile(params, state, *arguments)
"""


@pytest.mark.parametrize("rows", ["all", "active"])
def test_a_decode_step_updates_deltanets_matrices_in_place(rows: str, tmp_path: Path) -> None:
    """In XLA's buffer assignment the memory of a layer's matrices holds the old and the new ones,
    and no other memory is as large; also where idle rows have to keep theirs."""
    environment = {"XLA_FLAGS": f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"}
    subprocess.run(
        [sys.executable, "-c", DECODE, rows], check=True, env=environment, capture_output=True
    )
    texts = [file.read_text() for file in tmp_path.glob("*buffer-assignment.txt")]
    largest = max(texts, key=len).partition("\nTotal bytes used")[0]
    memory = re.split(r"^allocation ", largest, flags=re.MULTILINE)[1:]
    matrices = [text for text in memory if "shape |f32[3,4,128,128]| at" in text]
    assert len(matrices) == 3
    for text in matrices:
        assert re.match(r"\d+: size 786432, parameter \d+, .*maybe-live-out", text)
        assert len(re.findall(r"^ value: .* f32\[3,4,128,128\]", text, re.MULTILINE)) == 2
    others = [text for text in memory if " parameter " not in text.partition("\n")[0]]
    assert others
    assert all(int(re.match(r"\d+: size (\d+)", text)[1]) < 786432 for text in others)
