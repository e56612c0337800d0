"""Reading files ahead: they are in the system's memory before anybody asks for them."""

import contextlib
import ctypes
import mmap
import os
import threading
import time
from pathlib import Path

import pytest

from qwen35.commands import cli
from qwen35.files.read_ahead import reading_ahead

DEMO = str(Path(__file__).resolve().parents[3] / "demo")
SIZE = 8 * 2**20


def pages_in_memory(file) -> int:
    """Counts the pages of a file that the system has in memory, without reading any."""
    with open(file, "r+b") as content, mmap.mmap(content.fileno(), SIZE) as mapped:
        found = (ctypes.c_ubyte * (SIZE // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        assert ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(SIZE), found) == 0
        del start
        return sum(page & 1 for page in found)


def forget(file) -> None:
    """Has the system drop a file that is on the disk from its memory."""
    descriptor = os.open(file, os.O_RDWR)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def test_files_are_in_memory_when_they_are_asked_for(tmp_path):
    files = [tmp_path / f"model-{number}.safetensors" for number in range(2)]
    other = tmp_path / "other.bin"
    for file in (*files, other):
        file.write_bytes(b"x" * SIZE)
        forget(file)
        if pages_in_memory(file):
            pytest.skip("this file system keeps what it is told to forget")
    with reading_ahead(tmp_path):
        limit = time.monotonic() + 20
        while any(pages_in_memory(file) < SIZE // mmap.PAGESIZE for file in files):
            assert time.monotonic() < limit
            time.sleep(0.01)
    assert not pages_in_memory(other)


def test_it_ends_with_the_block_whatever_the_files_are(tmp_path):
    """A file that would take minutes, a pipe, a directory, none at all."""
    huge = tmp_path / "model.safetensors"
    with open(huge, "wb") as file:
        file.truncate(2**42)
    (tmp_path / "a.safetensors").mkdir()
    os.mkfifo(tmp_path / "b.safetensors")
    for directory in (tmp_path, tmp_path / "missing"):
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt), reading_ahead(directory):
            raise KeyboardInterrupt
        assert time.monotonic() - start < 5
    assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


@pytest.mark.parametrize(
    ("command", "rank", "reads"),
    [
        (("generate", "--model", DEMO, "--prompt", ""), "0", True),
        (("generate", "--model", DEMO, "--prompt", ""), "1", False),  # the first one does
        (("eval", "perplexity", "--model", DEMO, "--text", "missing"), "0", True),
        (("info", "missing"), "0", False),
    ],
)
def test_commands_that_load_a_model_read_ahead(command, rank, reads, monkeypatch, capsys):
    """From the first moment on: all of these end soon after it, with an error."""
    seen = []
    monkeypatch.setattr(
        cli, "reading_ahead", lambda directory: contextlib.nullcontext(seen.append(directory))
    )
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert cli.main(list(command)) == 2
    assert seen == [DEMO] * reads, capsys.readouterr().err
