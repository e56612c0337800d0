"""Parts of safetensors files and whole ones, against the library's own reader."""

import hashlib
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

import qwen35
from qwen35.files import tensor_file
from qwen35.files.tensor_file import TensorFile


@pytest.fixture
def file(tmp_path):
    generator = torch.Generator().manual_seed(0)
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    tensors = {
        str(dtype): torch.randn(7, 5, generator=generator).to(dtype).contiguous()
        for dtype in dtypes
    }
    tensors |= {
        "deep": torch.randn(4, 3, 2, generator=generator),
        "flat": torch.arange(11.0),
        "counts": torch.arange(3, dtype=torch.int32),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(2.5),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("sparse", [False, True])
def test_parts_are_those_of_the_whole(file, sparse):
    opened, whole = TensorFile(file, sparse), load_file(file)
    assert sorted(opened.keys()) == sorted(whole)
    for name, tensor in whole.items():
        part = opened.get_slice(name)
        assert part.get_shape() == tuple(tensor.shape)
        if tensor.dim():
            for rows in (slice(None), slice(1, 3), slice(2, 2), slice(1, 100)):
                assert torch.equal(part[rows], tensor[rows])
                assert part[rows].dtype == tensor.dtype
        if tensor.dim() == 2:
            for columns in (slice(None), slice(1, 3), slice(0, 1), slice(2, 2)):
                assert torch.equal(part[1:6, columns], tensor[1:6, columns])


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("chunk", [3, 64, 2**24])
def test_a_whole_file_is_read_and_verified(file, chunk, monkeypatch):
    """The checksum covers every byte, however many pieces the file is read in."""
    monkeypatch.setattr(tensor_file, "_CHUNK", chunk)
    found, whole = TensorFile(file).read_verified(digest(file)), load_file(file)
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    right, content = digest(file), file.read_bytes()
    for at in (-1, len(content) // 2):
        damaged = bytearray(content)
        damaged[at] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(qwen35.CheckpointError, match=r"x\.safetensors: damaged, its SHA-256"):
            TensorFile(file).read_verified(right)


def test_what_is_no_safetensors_file_is_refused(file, tmp_path):
    content = file.read_bytes()
    other = tmp_path / "other"
    for damaged in (b"", content[:4], content[:100], content[:-1], content + b"x", b"{}" * 50):
        other.write_bytes(damaged)
        with pytest.raises(qwen35.CheckpointError, match="other: not a readable safetensors file"):
            TensorFile(other)
    with pytest.raises(qwen35.CheckpointError, match="nowhere: not a readable safetensors file"):
        TensorFile(tmp_path / "nowhere")


def test_a_file_that_is_cut_while_it_is_open(file):
    """Nothing else than an error: no zeros for what is not there, no signal for a page of a map."""
    opened = TensorFile(file)
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(qwen35.CheckpointError, match=r"x\.safetensors: ends at byte \d+"):
        for name in opened.keys():
            if opened.get_slice(name).get_shape():
                opened.get_slice(name)[:]


def test_a_dtype_that_no_rank_has_is_named(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"odd": torch.zeros(2, dtype=torch.int16)}, file)
    with pytest.raises(qwen35.CheckpointError, match="'odd' has dtype I16"):
        TensorFile(file).read_verified(digest(file))


def test_a_file_larger_than_memory_is_opened(tmp_path):
    """A terabyte of zeros, of which the file system keeps nothing; a private map of it is refused
    by Linux, and reading it would take an hour."""
    header = {"x": {"dtype": "BF16", "shape": [2**29, 2**10], "data_offsets": [0, 2**40]}}
    text = json.dumps(header).encode()
    file = tmp_path / "x.safetensors"
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + 2**40)
    part = TensorFile(file, sparse=True).get_slice("x")
    assert not part[2**28 : 2**28 + 2, 5:9].any()
