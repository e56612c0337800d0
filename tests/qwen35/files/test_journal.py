"""A file of JSON lines: whatever its writer dies of, what was written stays."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qwen35.files.journal import as_line, opened

BEGINNING = b'{"id": "'
TEXTS = ["", "Grüße\n", "\ud800", "日本"]
ENTRIES = [{"id": f"x{number}", "text": text} for number, text in enumerate(TEXTS)]


def read(entry):
    if entry.get("id") is None:
        raise ValueError("no id")
    return entry["id"]


def open_journal(path):
    return opened(path, read, BEGINNING)


def written(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_lines_are_added_and_found_again(tmp_path):
    path = tmp_path / "out.jsonl"
    for count, entry in enumerate(ENTRIES):
        with open_journal(path) as journal:
            assert [known for _, known in journal.known] == [f"x{n}" for n in range(count)]
            journal.add(entry)
    assert written(path) == ENTRIES
    assert "Grüße" in path.read_text() and "日本" in path.read_text()  # not escaped


def test_a_torn_last_line_is_cut_off_wherever_it_was_torn(tmp_path):
    path = tmp_path / "out.jsonl"
    whole = as_line(ENTRIES[0]) + as_line(ENTRIES[1])
    torn = as_line(ENTRIES[3])
    for size in range(2 * len(torn)):  # zeros where the power failed before the rest was there
        path.write_bytes(whole + torn[: size // 2] + bytes(size % 2))
        with open_journal(path) as journal:
            assert [known for _, known in journal.known] == ["x0", "x1"]
            journal.add(ENTRIES[2])
        assert written(path) == ENTRIES[:3]


@pytest.mark.parametrize(
    "content",
    [
        b"my notes, with no line end",
        b"my notes\n",
        b'{"id": "x0"}\nmy notes',
        b'{"id": "x0"}\n{"text": 1}\n{"id": "x1"}\n',
        b'{"id": "x0"}\n\n{"id": "x1"}\n',
        b'{"id": "x0"}\n5\n{"id": "x1"}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_file_of_something_else_is_refused_and_stays(tmp_path, content):
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="notes"), open_journal(path):
        pass
    assert path.read_bytes() == content


def test_what_is_no_file_is_refused(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/null")):
        with pytest.raises(ValueError, match="no file that can be gone on with"):
            with open_journal(path):
                pass


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path):
    path = tmp_path / "out.jsonl"
    with open_journal(path) as journal:
        place = journal.add(ENTRIES[0])
        with pytest.raises(ValueError, match="is being written by another process"):
            with open_journal(path):
                pass
        journal.rewrite([place])
    with open_journal(path) as journal:
        assert [known for _, known in journal.known] == ["x0"]


def test_the_lock_ends_with_its_process(tmp_path):
    path = tmp_path / "out.jsonl"
    script = """if True:
        import sys, time
        from pathlib import Path
        from qwen35.files.journal import opened
        with opened(Path(sys.argv[1]), dict, b"{") as journal:
            journal.add({"id": "x0"})
            print("there", flush=True)
            time.sleep(600)
    """
    child = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"there\n"
    with pytest.raises(ValueError, match="another process"), open_journal(path):
        pass
    child.send_signal(signal.SIGKILL)
    child.wait(60)
    with open_journal(path) as journal:
        assert [known for _, known in journal.known] == ["x0"]


def test_a_full_disk_leaves_no_half_of_a_line(tmp_path, monkeypatch):
    path, whole = tmp_path / "out.jsonl", os.write

    def full(descriptor, content):
        if len(content) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(descriptor, content[:10])

    with open_journal(path) as journal:
        journal.add(ENTRIES[0])
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            journal.add(ENTRIES[1])
        assert written(path) == ENTRIES[:1]
        monkeypatch.setattr(os, "write", lambda descriptor, content: whole(descriptor, content[:7]))
        journal.add(ENTRIES[3])  # written in parts
    assert written(path) == [ENTRIES[0], ENTRIES[3]]


def test_a_rewrite_keeps_the_lines_named_in_their_order(tmp_path):
    path = tmp_path / "out.jsonl"
    with open_journal(path) as journal:
        places = [journal.add(entry) for entry in ENTRIES]
    with open_journal(path) as journal:
        assert [place for place, _ in journal.known] == places
        places.append(journal.add({"id": "last"}))
        journal.rewrite([places[4], places[2], places[0]])
    assert written(path) == [{"id": "last"}, ENTRIES[2], ENTRIES[0]]
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]
