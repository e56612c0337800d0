"""Parts of safetensors files and whole ones, against the library's own reader."""

import hashlib
import json
import math
import os
import resource
import shutil
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

import qwen35
from qwen35.files import tensor_file
from qwen35.files.tensor_file import TensorFile

DEMO = Path(__file__).parents[3] / "demo"


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


@pytest.mark.parametrize("limit", [None, 2**35])
def test_a_file_larger_than_memory_is_opened(tmp_path, limit):
    """A terabyte of zeros, of which the file system keeps nothing; a private map of it is refused
    by Linux, any map where the address space is limited (ulimit -v), and reading it would take an
    hour."""
    header = {"x": {"dtype": "BF16", "shape": [2**29, 2**10], "data_offsets": [0, 2**40]}}
    file = write(tmp_path / "x.safetensors", json.dumps(header).encode(), 2**40)
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit or old[0], old[1]))
    try:
        part = TensorFile(file, sparse=True).get_slice("x")
        assert not part[2**28 : 2**28 + 2, 5:9].any()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def write(file, header, size):
    """A file with a header of one's own, and so many bytes of zeros."""
    with open(file, "wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        out.truncate(8 + len(header) + size)
    return file


HEADERS = [
    ({}, 0, True),
    ({"__metadata__": {"a": "b"}}, 0, True),
    ({"__metadata__": {"a": "b"}, "x": ["F32", [2, 3], [0, 24]]}, 24, True),
    ({"x": ["F32", [2], [0, 8]], "y": ["U8", [0], [8, 8]], "z": ["F64", [], [8, 16]]}, 16, True),
    ({"b": ["BF16", [1], [8, 10]], "a": ["F64", [1], [0, 8]]}, 10, True),
    ({"x": ["F4", [4], [0, 2]], "y": ["F6_E2M3", [4], [2, 5]]}, 5, True),
    ({"x": ["F32", [2], [0, 8]]}, 9, False),  # more than the tensors
    ({"x": ["F32", [2], [0, 8]]}, 7, False),
    ({"x": ["F32", [2], [4, 12]]}, 12, False),  # a hole
    ({"x": ["F32", [2], [0, 8]], "y": ["F32", [2], [4, 12]]}, 12, False),  # one over the other
    ({"x": ["F32", [3], [0, 8]]}, 8, False),  # another size
    ({"x": ["F33", [2], [0, 8]]}, 8, False),
    ({"x": ["F32", [-2], [0, 8]]}, 8, False),
    ({"x": ["F32", [2.0], [0, 8]]}, 8, False),
    ({"x": ["F32", 2, [0, 8]]}, 8, False),
    ({"x": ["I64", "", [0, 8]]}, 8, False),  # an empty text is no list without sizes
    ({"x": ["I64", {}, [0, 8]]}, 8, False),
    ({"x": ["F32", [2], [8, 0]]}, 8, False),
    ({"x": ["F32", [2], [0]]}, 8, False),
    ({"x": ["F32", [2**40, 2**40], [0, 8]]}, 8, False),
    ({"x": ["F32", [10**400], [0, 8]]}, 8, False),
    ({"x": ["F32", [0, 2**62], [0, 0]]}, 0, True),
    ({"x": ["F32", [2], [0, 8], ["\ud800"]]}, 8, False),  # a key of others
    ({"x": ["F32", [2], [0, 8], math.inf]}, 8, False),
    ({"x": ["F32", [2], [0, 8], [{"n": -(10**309)}]]}, 8, False),
    ({"x": ["F32", [2], [0, 8], [{"n": 10**308, "m": 2**70}]]}, 8, True),
    ({"x": ["F32", [2], [0, 8], [1]]}, 8, True),
    ({"x": ["F32", [2], [0, 8], json.loads("[" * 125 + "]" * 125)]}, 8, True),
    ({"x": ["F32", [2], [0, 8], json.loads("[" * 126 + "]" * 126)]}, 8, False),
    ({"__metadata__": ["pt"]}, 0, False),
    ({"__metadata__": 0}, 0, False),
    ({"__metadata__": None}, 0, True),
    ({"__metadata__": {"format": 3}}, 0, False),
    ({"__metadata__": {"format": "\ud800"}}, 0, False),
    ({"\ud800": ["F32", [2], [0, 8]]}, 8, False),
]


def test_what_a_header_says_twice_is_refused(tmp_path):
    """The format forbids it; readers differ in which one they take."""
    entry = '"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
    for header in (f"{{{entry}, {entry}}}", f'{{{entry[:-1]}, "dtype": "I32"}}}}'):
        file = write(tmp_path / "x.safetensors", header.encode(), 8)
        with pytest.raises(qwen35.CheckpointError, match="stands twice"):
            TensorFile(file)


def test_a_size_of_very_many_dimensions_is_not_multiplied_out(tmp_path):
    header = {"x": {"dtype": "F32", "shape": [2**62] * 100_000, "data_offsets": [0, 8]}}
    file = write(tmp_path / "x.safetensors", json.dumps(header).encode(), 8)
    with pytest.raises(qwen35.CheckpointError, match="is no tensor's"):
        TensorFile(file)


@pytest.mark.parametrize("shape", [[0, 2**63], [0, 2**62, 8], [2**32, 0, 2**32]])
def test_sizes_of_an_empty_tensor_that_torch_can_not_hold_are_refused(tmp_path, shape):
    """The library takes them, and torch fails when the tensor is made."""
    header = {"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}
    file = write(tmp_path / "x.safetensors", json.dumps(header).encode(), 0)
    with pytest.raises(qwen35.CheckpointError, match="is no tensor's"):
        TensorFile(file)


@pytest.mark.parametrize(("stated", "size", "good"), HEADERS, ids=lambda v: str(v)[:40])
def test_headers_are_taken_as_the_library_takes_them(tmp_path, stated, size, good):
    names = ("dtype", "shape", "data_offsets", "other")
    header = {
        name: dict(zip(names, entry, strict=False)) if name != "__metadata__" else entry
        for name, entry in stated.items()
    }
    file = write(tmp_path / "x.safetensors", json.dumps(header).encode(), size)
    if good:
        with safetensors.safe_open(file, framework="numpy") as library:
            opened = TensorFile(file)
            assert sorted(opened.keys()) == sorted(library.keys())
            assert opened.metadata == (library.metadata() or {})
            for name in opened.keys():
                assert (
                    list(opened.get_slice(name).get_shape()) == library.get_slice(name).get_shape()
                )
        return
    with pytest.raises((safetensors.SafetensorError, OverflowError)):
        safetensors.safe_open(file, framework="numpy")
    with pytest.raises(qwen35.CheckpointError, match=r"x\.safetensors: not a readable"):
        TensorFile(file)


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (POINTER, r"a git-lfs pointer and not the file itself: run git lfs pull in .+"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page and not the file itself"),
        (b"<HTML><body>429 Too Many Requests", "a web page and not the file itself"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_what_a_download_left_is_named(tmp_path, name, content, says):
    """Each file that a checkpoint may keep in git-lfs, in the place that reads it first."""
    for file in DEMO.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / name).write_bytes(content)
    read = qwen35.Tokenizer.from_pretrained if name == "tokenizer.json" else qwen35.load
    with pytest.raises(qwen35.CheckpointError, match=f"{name}: {says}"):
        read(tmp_path)
