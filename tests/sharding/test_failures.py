"""What goes wrong is noticed: mutants fail, bad starts end soon with a clear error everywhere."""

import re
import shutil
import time
from pathlib import Path

import models
import pytest
import torch
from safetensors.torch import load_file, save_file

import qwen35
from qwen35.files import likeness
from qwen35.files.conversion import convert
from qwen35.sharding import process, spmd
from qwen35.sharding.collectives import all_gather, all_reduce
from qwen35.sharding.mesh import Mesh


def test_every_collective_and_the_interleaving_matter(checkpoint, run_ranks):
    """Each mutant misses the tolerance of the equality tests, 1e-5, by orders of magnitude."""
    name = "heads_of_27b"
    params = qwen35.load(checkpoint(name))
    tokens = torch.arange(14).view(2, 7)
    expected, _ = qwen35.prefill(params, qwen35.init_state(params, 2, 8), tokens)
    for results in run_ranks("mutants", Mesh(tp=2), path=str(checkpoint(name))):
        assert models.relative_error(results.pop("right"), expected) < 1e-5
        layers = models.CONFIGS[name].num_hidden_layers
        assert len(results) == 2 * layers + 1 + 3
        for mutant, logits in results.items():
            assert models.relative_error(logits, expected) > 1e-2, mutant


def on_every_rank(text: str, ranks: int, message: str) -> bool:
    return all(
        any(message in line and line.startswith(f"[rank {rank}]") for line in text.splitlines())
        for rank in range(ranks)
    )


def test_another_number_of_processes(fail_ranks):
    text = fail_ranks("start_only", Mesh(tp=2), processes=3, keep_going=True)
    assert on_every_rank(text, 3, "3 processes were started, but dp 1 x tp 2 needs 2")


def test_a_rank_with_another_configuration_and_dtype(fail_ranks):
    text = fail_ranks("disagree", Mesh(tp=3), keep_going=True)
    assert on_every_rank(text, 3, "the ranks disagree: config is")
    assert on_every_rank(text, 3, "dtype is torch.float32 on rank 0 but torch.bfloat16 on rank 1")


def changed(checkpoint: Path, directory: Path, name: str) -> Path:
    """A copy in which one weight is another: the norms are not, as where an adapter was merged."""
    shutil.copytree(checkpoint, directory)
    tensors = load_file(directory / "model.safetensors")
    tensors[name] = tensors[name] + 0.01
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.mark.parametrize("converted", [False, True])
def test_checkpoints_of_equal_norms_are_told_apart(converted, checkpoint, fail_ranks, tmp_path):
    """And a copy, whose files have another time, is taken for what it is."""
    one = checkpoint("two_layers")
    other = changed(one, tmp_path / "other", "model.layers.1.mlp.down_proj.weight")
    copy = shutil.copytree(one, tmp_path / "copy")
    paths = [one, copy, other]
    if converted:
        for number, path in enumerate(paths):
            convert(path, tmp_path / f"rank files {number}", 2, dtype="float32")
            paths[number] = tmp_path / f"rank files {number}"
    one, copy, other = paths
    assert likeness.digest(one) == likeness.digest(copy)
    arguments = {"paths": [str(one), str(other)], "keep_going": True}
    text = fail_ranks("loaded_by_a_command", Mesh(tp=2), **arguments)
    assert on_every_rank(text, 2, "ValueError: the ranks disagree: checkpoint is")


def test_a_missing_rank_file_fails_every_rank(fail_ranks, checkpoint, tmp_path):
    convert(checkpoint("heads_of_27b"), tmp_path / "out", 2, dtype="float32")
    (tmp_path / "out" / "rank-00001-of-00002.safetensors").unlink()
    text = fail_ranks("load_together", Mesh(tp=2), path=str(tmp_path / "out"), keep_going=True)
    assert on_every_rank(text, 2, "rank-00001-of-00002.safetensors: no such file; of its 2 ranks")


def test_a_checkpoint_of_another_tp_fails_every_rank(fail_ranks, checkpoint, tmp_path):
    convert(checkpoint("heads_of_27b"), tmp_path / "out", 4, dtype="float32")
    text = fail_ranks("load_together", Mesh(tp=2), path=str(tmp_path / "out"), keep_going=True)
    assert on_every_rank(text, 2, "converted for tp 4, not 2")


@pytest.mark.parametrize("killed", [False, True], ids=["exit", "SIGKILL"])
def test_the_ranks_notice_one_that_dies(killed, fail_ranks):
    """Not at the timeout of 60 s, but when the kernel closes its connections, whatever ended it.

    That takes milliseconds; 10 s are for a machine on which the ranks hardly get to run.
    """
    start = time.monotonic()
    text = fail_ranks("one_rank_dies", Mesh(tp=3), keep_going=True, killed=killed)
    assert time.monotonic() - start < 50
    waited = dict(re.findall(r"^\[rank (\d)\] RuntimeError: waited ([\d.]+) s", text, re.MULTILINE))
    assert set(waited) == {"0", "2"}
    assert max(map(float, waited.values())) < 10


def test_the_ranks_give_up_on_one_that_hangs_after_the_timeout(fail_ranks):
    start = time.monotonic()
    text = fail_ranks("one_rank_hangs", Mesh(tp=2), timeout_of_ranks=4)
    assert "[rank 0]" in text and "4000ms" in text
    assert time.monotonic() - start < 50


def test_collectives_without_a_start():
    for collective in (all_reduce, all_gather):
        with pytest.raises(RuntimeError, match="torchrun --nproc-per-node 2"):
            collective(torch.ones(2), Mesh(tp=2))
    with pytest.raises(ValueError, match="RANK and WORLD_SIZE are not set"):
        process.start(Mesh(tp=2))
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds, not 0"):
        process.start(Mesh(tp=2), timeout=0)


def test_collectives_of_one_rank_are_the_identity():
    x = torch.ones(2)
    for mesh in (None, Mesh(), Mesh(dp=2)):
        assert all_reduce(x, mesh) is x and all_gather(x, mesh) is x


def test_ranks_outside_the_mesh_and_batches_that_do_not_split():
    with pytest.raises(ValueError, match="rank 4 is outside a mesh of 4 ranks"):
        qwen35.Runtime(mesh=Mesh(tp=4), rank=4)
    with pytest.raises(ValueError, match="rank None is outside a mesh of 1 ranks"):
        qwen35.Runtime(rank=None)
    with pytest.raises(ValueError, match="3 rows can't be split evenly over dp = 2"):
        process.split_batch(torch.zeros(3, 1), Mesh(dp=2), 0)
    runtime = qwen35.Runtime(mesh=Mesh(tp=2), rank=None)
    with pytest.raises(ValueError, match="device must be 'xla', not 'cpu'"):
        qwen35.init_params(models.CONFIGS["even"], runtime=runtime)
    with pytest.raises(ValueError, match="1 trees for a mesh of 2 ranks"):
        spmd.stack([()], Mesh(tp=2))


def test_reducing_in_float32_is_closer_in_bfloat16(checkpoint, run_ranks):
    """The effect of `Mesh(reduce=…)`, against the same bfloat16 weights computed in float32."""
    name = "heads_of_27b"
    rounded = torch.utils._pytree.tree_map(
        lambda leaf: leaf.bfloat16().float() if leaf.dtype == torch.float32 else leaf,
        qwen35.load(checkpoint(name)),
    )
    tokens = torch.arange(120).view(4, 30)
    exact, _ = qwen35.prefill(rounded, qwen35.init_state(rounded, 4, 30), tokens)
    results = run_ranks("reduce_dtypes", Mesh(tp=8), path=str(checkpoint(name)))[0]
    error = {dtype: (logits - exact).square().mean() for dtype, logits in results.items()}
    assert error["float32"] < error["activation"]
