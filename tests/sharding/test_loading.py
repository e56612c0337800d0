"""Loading a rank reads and keeps its share, seen from outside; converted checkpoints."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import models
import pytest
import torch
from torch.utils import _pytree as pytree

import qwen35
from qwen35.files import likeness
from qwen35.files.compressing import compress
from qwen35.files.conversion import convert
from qwen35.forms import dense
from qwen35.sharding.mesh import Mesh

HERE = Path(__file__).parent


@dataclass
class Watched:
    """What a load did; bytes."""

    share: int
    largest: int
    requested: int
    from_disk: int
    peak: int


def watch(path: Path, tp: int, rank: int) -> Watched:
    """Loads in a child process and reads its counters from the kernel."""
    for file in path.glob("*.safetensors"):
        with open(file, "rb") as content:
            os.fsync(content.fileno())
            os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, str(HERE / "loader.py"), str(path), str(tp), str(rank)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        process = Path("/proc") / str(child.pid)
        before = counters(process)
        (process / "clear_refs").write_text("5")  # resets the peak
        child.stdin.write("\n")
        child.stdin.flush()
        share, largest = map(int, child.stdout.readline().split())
        after = counters(process)
        child.stdin.write("\n")
        child.stdin.flush()
    return Watched(
        share,
        largest,
        after["rchar"] - before["rchar"],
        after["read_bytes"] - before["read_bytes"],
        after["VmHWM"] - before["VmRSS"],
    )


def counters(process: Path) -> dict[str, int]:
    """The kernel's counters of a process; memory in bytes."""
    found = {}
    for name in ("io", "status"):
        for line in (process / name).read_text().splitlines():
            key, _, value = line.partition(":")
            if key in ("rchar", "read_bytes"):
                found[key] = int(value)
            elif key in ("VmHWM", "VmRSS"):
                found[key] = int(value.split()[0]) * 1024
    return found


def write_large(directory: Path) -> Path:
    """A checkpoint of 550 MB in bfloat16."""
    config = qwen35.Config(
        vocab_size=8192,
        hidden_size=1024,
        intermediate_size=16384,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=128,
        linear_num_key_heads=16,
        linear_num_value_heads=32,
        eos_token_id=3,
    )
    qwen35.save(qwen35.init_params(config, dtype="bfloat16"), directory)
    return directory


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """In files of about 128 MB, as a large model's are many."""
    with mock.patch("qwen35.files.checkpoint._SHARD_BYTES", 128 * 2**20):
        directory = write_large(tmp_path_factory.mktemp("large"))
    assert len(list(directory.glob("model-*-of-*.safetensors"))) > 3
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("files", ["one", "many"])
def test_a_rank_reads_and_keeps_its_share(files, large, tmp_path):
    path = large if files == "many" else write_large(tmp_path)
    seen = watch(path, 4, 1)
    total = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    assert total > 500e6 and abs(seen.share - total / 4) < 0.01 * total
    assert seen.requested <= 1.05 * seen.share
    assert seen.peak <= 1.1 * seen.share + seen.largest
    # Columns of a row-major tensor share pages with other ranks' columns, and disks read pages:
    # here runs of 4 and 8 KiB. One of 4 KiB lies in two pages unless it starts with one, which it
    # does in no file or in all of a file's. Ranks of one host find those pages in its cache.
    assert seen.from_disk <= {"one": 1.5, "many": 2.0}[files] * seen.share


@pytest.mark.slow
def test_a_converted_rank_is_read_once_from_start_to_end(large, tmp_path):
    convert(large, tmp_path / "out", 4)
    seen = watch(tmp_path / "out", 4, 1)
    assert seen.requested <= 1.05 * seen.share
    assert seen.from_disk <= 1.05 * seen.share
    assert seen.peak <= 1.1 * seen.share + seen.largest


@pytest.fixture
def small(checkpoint) -> Path:
    return checkpoint("heads_of_27b")


@pytest.fixture
def converted(small, tmp_path) -> Path:
    """The small checkpoint, converted to tp = 2 in float32."""
    directory = tmp_path / "converted"
    convert(small, directory, 2, dtype="float32")
    return directory


def runtime(tp: int, rank: int = 0) -> qwen35.Runtime:
    return qwen35.Runtime(mesh=Mesh(tp=tp), rank=rank)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_converted_rank_equals_a_loaded_one(dtype, small, tmp_path):
    convert(small, tmp_path, 16, dtype=dtype)
    for rank in (0, 3, 15):
        expected = qwen35.load(small, dtype=dtype, runtime=runtime(16, rank))
        actual = qwen35.load(tmp_path, dtype=dtype, runtime=runtime(16, rank))
        assert actual.config == expected.config and actual.runtime == expected.runtime
        for ours, theirs in zip(
            pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True
        ):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_quantised_rank_files_are_what_loading_quantises(kind, small, tmp_path):
    """And the ranks' shares together are what the whole becomes."""
    made = {"weights": kind, "head": kind}
    convert(small, tmp_path, 2, dtype="float32", **made)
    shares = []
    for rank in range(2):
        expected = qwen35.load(small, dtype="float32", runtime=runtime(2, rank), **made)
        actual = qwen35.load(tmp_path, dtype="float32", runtime=runtime(2, rank))
        for ours, theirs in zip(
            pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True
        ):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours.float(), theirs.float())
        assert actual.layers[0].down.kind == kind
        shares.append(dense(actual.layers[0].down))
        plain = qwen35.load(tmp_path, dtype="float32", runtime=runtime(2, rank), weights="dense")
        assert torch.equal(plain.layers[0].down, shares[-1])
    whole = qwen35.load(small, dtype="float32", **made).layers[0].down
    assert torch.equal(torch.cat(shares), dense(whole))
    with pytest.raises(qwen35.CheckpointError, match="made for weights"):
        convert(small, tmp_path, 2, dtype="float32")


def test_another_tp_dtype_config_or_rank_is_refused_by_name(converted):
    with pytest.raises(qwen35.CheckpointError, match="converted for tp 2, not 4"):
        qwen35.load(converted, runtime=runtime(4))
    with pytest.raises(qwen35.CheckpointError, match="converted for tp 2, not 1"):
        qwen35.load(converted)
    with pytest.raises(qwen35.CheckpointError, match="made for dtype 'float32', not 'bfloat16'"):
        qwen35.load(converted, dtype="bfloat16", runtime=runtime(2))
    (converted / "rank-00001-of-00002.safetensors").unlink()
    with pytest.raises(qwen35.CheckpointError, match=r"rank-00001-of-00002\.safetensors: no such"):
        qwen35.load(converted, runtime=runtime(2, 1))
    config = json.loads((converted / "config.json").read_text()) | {"rms_norm_eps": 1e-3}
    (converted / "config.json").write_text(json.dumps(config))
    with pytest.raises(qwen35.CheckpointError, match=r"rms_norm_eps is 1e-06 there and 0\.001"):
        qwen35.load(converted, runtime=runtime(2))


def test_a_swapped_rank_file_is_refused(converted):
    first, second = (converted / f"rank-0000{rank}-of-00002.safetensors" for rank in (0, 1))
    shutil.copy(second, first)
    with pytest.raises(qwen35.CheckpointError, match="damaged, its SHA-256"):
        qwen35.load(converted, runtime=runtime(2))


def test_the_checkpoint_is_digested_once_whatever_the_ranks(small, tmp_path):
    """Which reads some of every tensor; and not at all where all is there already."""
    with mock.patch.object(likeness, "digest", wraps=likeness.digest) as digest:
        convert(small, tmp_path, 4, dtype="float32")
        assert digest.call_count == 1
        convert(small, tmp_path, 4, dtype="float32")
        assert digest.call_count == 1
    noted = [json.loads(file.read_text())["content"] for file in tmp_path.glob("rank-*.json")]
    assert noted == [likeness.digest(small)] * 4


def test_one_flipped_bit_is_noticed_and_repaired_by_another_conversion(converted, small):
    file = converted / "rank-00001-of-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(qwen35.CheckpointError, match="damaged, its SHA-256"):
        qwen35.load(converted, runtime=runtime(2, 1))
    said = []
    convert(small, converted, 2, dtype="float32", report=said.append)
    assert "there already" in said[0] and "sha256" in said[1]
    qwen35.load(converted, runtime=runtime(2, 1))


def test_converting_over_another_conversion_is_refused(converted, small, checkpoint):
    with pytest.raises(qwen35.CheckpointError, match="conversion to another tp"):
        convert(small, converted, 4, dtype="float32")
    with pytest.raises(qwen35.CheckpointError, match="made for dtype"):
        convert(small, converted, 2, dtype="bfloat16")
    with pytest.raises(qwen35.CheckpointError, match="made for another config"):
        convert(checkpoint("heads_of_0.8b_tied"), converted, 2, dtype="float32")
    qwen35.load(converted, runtime=runtime(2))  # what is refused has written nothing


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stored": [1]}, "stored is .* no object"),
        ({"stored": {"head": [{"width": -1}]}}, "no way to store head"),
        ({"stored": {"head": [{"width": 8, "kind": "int4", "group": 0}]}}, "no way to store head"),
        ({"stored": {"head": [{"width": 8, "kind": "int5"}]}}, "no way to store head"),
        ({"stored": {"head": [{"x" * 5000: 1}]}}, "no way to store head"),
        ({"stored": {"head": 3}}, "no way to store head"),
        ({"config": lambda config: config | {"new": None}}, "another config: new is None there"),
        ({"sha256": 3}, "no SHA-256 in it"),
    ],
)
def test_a_record_that_says_something_else(change, says, converted):
    file = converted / "rank-00000-of-00002.json"
    record = json.loads(file.read_text())
    for name, value in change.items():
        record[name] = value(record[name]) if callable(value) else value
    file.write_text(json.dumps(record))
    with pytest.raises(qwen35.CheckpointError, match=says) as caught:
        qwen35.load(converted, runtime=runtime(2))
    assert len(str(caught.value)) < 500


def test_a_conversion_goes_on_only_with_the_same_weights(checkpoint, tmp_path):
    """Of the same configuration: rank 0 of the old weights would stand beside rank 1 of new ones,
    and both would load."""
    source, directory = tmp_path / "source", tmp_path / "out"
    config = models.CONFIGS["heads_of_27b"]
    qwen35.save(qwen35.init_params(config, seed=1), source)
    convert(source, directory, 2, dtype="float32")
    first = {path.name: path.read_bytes() for path in directory.iterdir()}
    qwen35.save(qwen35.init_params(config, seed=2), source)
    with pytest.raises(qwen35.CheckpointError, match="made of other weights"):
        convert(source, directory, 2, dtype="float32")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == first
    convert(source, tmp_path / "other", 2, dtype="float32")
    for path in (tmp_path / "other").glob("rank-00001-*"):
        shutil.copy(path, directory)
    for rank in range(2):
        with pytest.raises(qwen35.CheckpointError, match="are of different weights"):
            qwen35.load(directory, runtime=runtime(2, rank))


def test_a_conversion_overwrites_no_checkpoint(small, converted, checkpoint, tmp_path):
    other = tmp_path / "other"
    qwen35.save(qwen35.load(checkpoint("heads_of_0.8b_tied")), other)
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    for weights in (None, "int8"):
        with pytest.raises(
            qwen35.CheckpointError, match=r"holds .*model\.safetensors, which is no"
        ):
            convert(small, other, 2, weights=weights)
    with pytest.raises(ValueError, match="into itself would lose it"):
        convert(other, other, 2)
    with pytest.raises(ValueError, match="into itself would lose it"):
        compress(other, other, "int8")
    with pytest.raises(qwen35.CheckpointError, match=r"holds rank-00000-of-00002\.safetensors"):
        compress(small, converted, "int8")
    with pytest.raises(ValueError, match="holds a conversion's rank files"):
        qwen35.save(qwen35.load(small), converted)
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before
    qwen35.load(converted, runtime=runtime(2))


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_that_looks_complete(large, tmp_path):
    """Killed at many moments: each file with its final name is whole, and it can be finished."""
    command = [sys.executable, "-m", "qwen35", "convert", "--tp", "4", str(large), str(tmp_path)]
    for delay in (0.0, 0.1, 0.2, 0.4):
        known = len(list(tmp_path.glob("*.safetensors")))
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        partial = []
        while child.poll() is None and not partial:
            partial = list(tmp_path.glob(".rank-*.safetensors.*.aside"))
            time.sleep(0.005)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        complete = sorted(tmp_path.glob("*.safetensors"))
        assert len(complete) <= known + 2
        for file in complete:
            digest = json.loads(file.with_suffix(".json").read_text())["sha256"]
            assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    for rank in range(4):
        qwen35.load(tmp_path, dtype="bfloat16", runtime=runtime(4, rank))


def test_models_of_the_tests_split(checkpoint):
    """The rank that holds only padded queries loads too."""
    config = models.CONFIGS["heads_of_27b"]
    params = qwen35.load(checkpoint("heads_of_27b"), runtime=runtime(16, 3))
    query = params.layers[3].in_proj[:, : 2 * config.head_dim]
    assert not query.any() and not params.layers[3].out_proj.any()
