"""Which argument's memory each result takes over, read from the HLO that XLA compiled."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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
