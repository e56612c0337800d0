"""The lists of graphs against what is compiled."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

import qwen35
from qwen35.commands.cli import main
from qwen35.generation.engine_settings import EngineSettings
from qwen35.graphs import graph_list
from qwen35.xla.observers import on_compile

DEMO = Path(__file__).resolve().parents[3] / "demo_vision"
pytestmark = pytest.mark.usefixtures("nothing_compiled")


def narrow(sees):
    """Two layers of the demo that sees, or that has no tower."""
    config = qwen35.Config.from_pretrained(DEMO)
    config = config if sees else config.text_only()
    kinds = ("linear_attention", "full_attention")
    return dataclasses.replace(config, num_hidden_layers=2, layer_types=kinds)


def compiled(call):
    """How many graphs of each step a call compiles."""
    names = []
    with on_compile(lambda event: event.phase == "done" and names.append(event.name)):
        call()
    return Counter(names)


@pytest.mark.parametrize(("slots", "sizes", "sees"), [(1, 2, True), (3, 3, False)])
def test_an_engine(slots, sizes, sees, letters):
    """Of each step as many graphs as are listed."""
    params = qwen35.init_params(narrow(sees), device="xla")
    settings = {"slots": slots, "capacity": 88, "prefill_chunk": 24, "prefill_sizes": sizes}
    engine = qwen35.Engine(params, letters, **settings)
    found = compiled(engine.warm_up)
    listed = graph_list.of_engine(
        params.config, EngineSettings(**settings), dtype=params.dtype, limited=True
    )
    assert sum(found.values()) == len(listed) and len({one.name for one in listed}) == len(listed)
    reads = [one for one in listed if one.name.startswith("prefill")]
    step = "_prefill" if slots == 1 else "_prefill_and_decode"
    assert found[step] == len(reads) == sizes + sees
    assert {(one.rows, one.tokens) for one in reads} == {
        (1, size) for size in ((12, 24) if sizes == 2 else (8, 16, 24))
    }
    choices = [one for one in listed if one.name.startswith("choose")]
    assert found["_choose"] == len(choices) and {one.rows for one in choices} == {slots}


def test_a_call_of_generate(letters):
    params = qwen35.init_params(narrow(sees=False), device="xla")
    found = compiled(
        lambda: qwen35.generate(
            params, letters, [[3] * 70, [5] * 41, [7]], max_new_tokens=3, batch=2
        )
    )
    listed = graph_list.of_generate(params.config, 70, rows=2)
    assert found == Counter({f"_{one.name}": 1 for one in listed})
    assert listed[0] == ("prefill", 2, 128)


def test_the_command(capsys):
    asked = ["info", "27b", "--tp", "4", "--slots", "4", "--context", "2048", "--graphs", "--json"]
    assert main(asked) == 0
    graphs = json.loads(capsys.readouterr().out)["graphs"]
    assert [one["name"] for one in graphs["generate"]] == ["prefill", "choose", "decode_and_choose"]
    assert {"name": "decode", "rows": 4, "tokens": 1} in graphs["engine"]
    assert main(["info", "demo", "--graphs", "--prompt-tokens", "600"]) == 0
    said = capsys.readouterr().out
    assert "for prompts of 600 tokens" in said and "an engine of 8 slots" in said
