"""What an engine takes by the plan, held to what its tensors take."""

import models
import pytest
import serving
import torch
from torch.utils import _pytree as pytree

import qwen35
from qwen35.commands import cli
from qwen35.graphs.engine_memory import engine_memory
from qwen35.sharding.mesh import Mesh

SETTINGS = {"snapshot_every": 16, "cache_bytes": 1 << 20}


def size(tree) -> int:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_device(dtype):
    """Weights, slots and what the prefix cache holds; positions and the like are not counted."""
    params = qwen35.init_params(models.CONFIGS["even"], dtype=dtype)
    plan = engine_memory(params.config, slots=3, context=48, dtype=dtype, **SETTINGS)
    engine = serving.engine_for(params)
    assert plan.weights == size(params)
    assert plan.states + plan.keys_and_values == size(engine.batch.rows.state.layers)
    engine.submit([1] * 32, max_new_tokens=1, sampling=qwen35.Sampling(1.0, top_k=3))
    assert len(list(engine.run())) == 1
    batch = engine.batch
    small = 3 * 64  # a few numbers of each slot
    chosen = size((batch.rows.logits, batch._settings, batch._ends))
    assert plan.choice <= chosen <= plan.choice + small
    snapshots = engine.stats.snapshots
    assert snapshots == 2 and engine.stats.bytes == (
        32 * plan.token + snapshots * (plan.snapshot + 4)
    )


def test_a_rank_takes_its_share():
    """Of every split tensor a quarter, logits too; what ends a slot is whole on each."""
    config = models.CONFIGS["even"]
    one, four = (
        engine_memory(config, Mesh(tp=tp), slots=2, context=64, **SETTINGS) for tp in (1, 4)
    )
    assert four.states * 4 == one.states and four.keys_and_values * 4 == one.keys_and_values
    assert four.token * 4 == one.token and four.snapshot * 4 == one.snapshot
    ends = 2 * config.vocab_size
    assert (four.choice - ends) * 4 == one.choice - ends
    with pytest.raises(ValueError, match="one dp row, not dp = 2"):
        engine_memory(config, Mesh(dp=2), slots=2, context=64, **SETTINGS)


def test_27b_on_four_cores(capsys):
    """Published geometry: 16 layers of 4 KV heads x 256 in bfloat16 are 65,536 bytes a token."""
    config = qwen35.presets["27b"]
    plan = engine_memory(config, Mesh(tp=4), slots=8, context=32768, **SETTINGS)
    assert plan.keys_and_values == 8 * 32768 * 65536 // 4
    assert plan.fits and plan.most_slots >= 8
    full = engine_memory(config, Mesh(tp=4), slots=plan.most_slots, context=32768, **SETTINGS)
    over = engine_memory(config, Mesh(tp=4), slots=plan.most_slots + 1, context=32768, **SETTINGS)
    assert full.fits and not over.fits
    command = ["info", "27b", "--tp", "4", "--context", "32768", "--slots"]
    assert cli.main([*command, "8"]) == 0
    assert f"at most {plan.most_slots} such slots fit" in capsys.readouterr().out
    assert cli.main([*command, str(plan.most_slots + 1)]) == 2
    shown = capsys.readouterr()
    assert "does not fit tp = 4: a rank needs 24." in shown.err and "has 24.0 GiB" in shown.err
    assert cli.main(["info", "27b", "--slots", "1"]) == 2
    assert "not one slot fits: split it over more ranks" in capsys.readouterr().err
