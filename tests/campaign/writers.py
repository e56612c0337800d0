"""What writers leave: who writes what, what may be found of it, and writers that are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from disk import before_each_change
from oracle import Fault
from test_tensors import SMALL
from torch.utils import _pytree as pytree

import qwen35
from qwen35.files import aside
from qwen35.files.compressing import compress
from qwen35.files.conversion import convert
from qwen35.files.journal import opened
from qwen35.reports.page import write_report
from qwen35.sharding.mesh import Mesh

OLD, NEW, OTHER, NOTHING = "old", "new", "other", "nothing"
MODELS = {name: qwen35.init_params(SMALL, seed=seed) for seed, name in enumerate((OLD, NEW, OTHER))}
DEMO = Path(__file__).resolve().parents[2] / "demo"
TOKENS = torch.tensor([[5, 6, 7]])
LINES = [{"id": f"x{number}", "text": "é" * number} for number in range(4)]


@dataclass(frozen=True)
class Case:
    """Something that is written in a directory.

    Attributes:
        prepare: makes what is there before.
        write: what is watched.
        found: tells what is there: OLD, NEW, NOTHING; raises `Fault` for anything else.
        allowed: of that, while it is written.
        rival: writes OTHER at the same time, where two may write at once.
        kept: counts what is there of that which `write` adds piece by piece, each of which counts
            as written, in `ADDED`, before the next.
    """

    prepare: Callable[[Path], None]
    write: Callable[[Path], None]
    found: Callable[[Path], str]
    allowed: tuple[str, ...] = (OLD, NEW)
    rival: Callable[[Path], None] | None = None
    kept: Callable[[Path], int] = lambda directory: 0


def save(directory: Path, name: str, shard: int = 10**9) -> None:
    with mock.patch("qwen35.files.checkpoint._SHARD_BYTES", shard):
        qwen35.save(MODELS[name], directory / "model")


def whose(params: qwen35.Params) -> str:
    leaves = pytree.tree_leaves(params)
    for name, known in MODELS.items():
        if all(map(torch.equal, leaves, pytree.tree_leaves(known))):
            return name
    raise Fault("a mixture of two models")


def saved(directory: Path) -> str:
    if not (directory / "model").exists():
        return NOTHING
    try:
        return whose(qwen35.load(directory / "model"))
    except qwen35.CheckpointError as error:
        if "no such file" not in str(error):
            raise Fault(f"refused: {error}") from error
        return NOTHING


def write_state(directory: Path, name: str) -> None:
    params = MODELS[OLD]
    tokens = TOKENS if name == OLD else TOKENS + 1
    _, state = qwen35.prefill(params, qwen35.init_state(params, 1, 8), tokens)
    qwen35.save_state(directory / "state", params, state, metadata={"name": name})


def read_state(directory: Path) -> str:
    if not (directory / "state").exists():
        return NOTHING
    try:
        return qwen35.load_state(directory / "state", MODELS[OLD]).metadata["name"]
    except qwen35.CheckpointError as error:
        raise Fault(f"refused: {error}") from error


def write_tokenizer(directory: Path, name: str) -> None:
    """The name stands in each of its files."""
    tokenizer = qwen35.Tokenizer.from_pretrained(DEMO)
    tokenizer.hf.add_tokens(f"<{name}>")
    tokenizer.hf.chat_template = name
    tokenizer.hf.pad_token = f"<{name}>"
    tokenizer.save_pretrained(directory / "tokenizer")


def read_tokenizer(directory: Path) -> str:
    if not (directory / "tokenizer").exists():
        return NOTHING
    try:
        hf = qwen35.Tokenizer.from_pretrained(directory / "tokenizer").hf
    except qwen35.CheckpointError as error:
        raise Fault(f"refused: {error}") from error
    name = hf.chat_template
    if hf.pad_token != f"<{name}>" or hf.pad_token_id != len(hf) - 1:
        raise Fault("the files of two tokenizers")
    return name


def converted(directory: Path) -> str:
    """Both ranks are of the new model, or some are not there yet, and converting goes on."""
    for again in (False, True):
        try:
            if again:
                convert(directory / "model", directory / "out", 2, dtype="float32")
            for rank in range(2):
                runtime = qwen35.Runtime(mesh=Mesh(tp=2), rank=rank)
                ours = qwen35.load(directory / "out", runtime=runtime)
                theirs = qwen35.load(directory / "model", runtime=runtime)
                if not all(map(torch.equal, pytree.tree_leaves(ours), pytree.tree_leaves(theirs))):
                    raise Fault("a rank of another model")
            return NOTHING if again else NEW
        except qwen35.CheckpointError as error:
            if again:
                raise Fault(f"it can't be gone on with: {error}") from error
    raise AssertionError


def compressed(directory: Path) -> str:
    """As `converted`: codes equal those that loading makes."""
    wanted = pytree.tree_leaves(qwen35.load(directory / "model", weights="int8"))
    for again in (False, True):
        try:
            if again:
                compress(directory / "model", directory / "out", "int8")
            ours = pytree.tree_leaves(qwen35.load(directory / "out"))
            if not all(
                torch.equal(a.float(), b.float()) for a, b in zip(ours, wanted, strict=True)
            ):
                raise Fault("other codes")
            return NOTHING if again else NEW
        except qwen35.CheckpointError as error:
            if again:
                raise Fault(f"it can't be gone on with: {error}") from error
    raise AssertionError


def report(directory: Path, name: str) -> None:
    result = {"model": name, "dtype": "float32", "device": "cpu", "versions": {}}
    result["provenance"] = {"date": "", "commit": None, "processor": "", "command": ""}
    with mock.patch("qwen35.reports.page.render", lambda found: ""):
        write_report(directory / "out", "page", name, result, name, {})


def reported(directory: Path) -> str:
    if not (directory / "out").exists():
        return NOTHING
    aside.settle(directory / "out")
    page, data = directory / "out" / "page.md", directory / "out" / "page.json"
    if not page.exists():
        return NOTHING
    name = json.loads(data.read_text())["model"]
    if not page.read_text().startswith(f"# {name}\n"):
        raise Fault("a page of one run and the data of another")
    return name


def answer(directory: Path, rewrite: bool = False) -> None:
    """Adds lines, and says so after each in `ADDED`."""
    with opened(directory / "out.jsonl", lambda line: line["id"], b'{"id": "') as journal:
        places = [place for place, _ in journal.known]
        for line in LINES[len(places) :]:
            places.append(journal.add(line))
            ADDED.append(line["id"])
        if rewrite:
            journal.rewrite(list(reversed(places)))


ADDED: list[str] = []


def answered(directory: Path) -> str:
    path = directory / "out.jsonl"
    if not path.exists():
        return NOTHING
    try:
        with opened(path, lambda line: line["id"], b'{"id": "') as journal:
            known = [name for _, name in journal.known]
    except ValueError as error:
        raise Fault(f"it can't be gone on with: {error}") from error
    names = [line["id"] for line in LINES]
    if known == names[::-1]:
        return NEW
    if known != names[: len(known)]:
        raise Fault(f"other lines: {known}")
    return OLD if len(known) < len(LINES) else NEW


def count_answers(directory: Path) -> int:
    path = directory / "out.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def of_source(directory: Path) -> None:
    save(directory, NEW)


CASES = {
    "a checkpoint over another": Case(
        lambda d: save(d, OLD), lambda d: save(d, NEW), saved, rival=lambda d: save(d, OTHER)
    ),
    "shards over a checkpoint": Case(
        lambda d: save(d, OLD), lambda d: save(d, NEW, 3000), saved
    ),
    "a checkpoint over shards": Case(
        lambda d: save(d, OLD, 3000), lambda d: save(d, NEW), saved
    ),
    "shards over shards": Case(
        lambda d: save(d, OLD, 3000), lambda d: save(d, NEW, 2000), saved,
        rival=lambda d: save(d, OTHER, 1500),
    ),
    "a new checkpoint": Case(
        lambda d: None, lambda d: save(d, NEW, 3000), saved, (NOTHING, NEW),
        lambda d: save(d, OTHER),
    ),
    "a state over another": Case(
        lambda d: write_state(d, OLD), lambda d: write_state(d, NEW), read_state,
        rival=lambda d: write_state(d, OTHER),
    ),
    "a new state": Case(
        lambda d: None, lambda d: write_state(d, NEW), read_state, (NOTHING, NEW)
    ),
    "a conversion for ranks": Case(
        of_source, lambda d: convert(d / "model", d / "out", 2, dtype="float32"), converted,
        (NOTHING, NEW),
    ),
    "a quantised conversion": Case(
        of_source, lambda d: compress(d / "model", d / "out", "int8"), compressed, (NOTHING, NEW)
    ),
    "a report over another": Case(
        lambda d: report(d, OLD), lambda d: report(d, NEW), reported,
        rival=lambda d: report(d, OTHER),
    ),
    "a tokenizer over another": Case(
        lambda d: write_tokenizer(d, OLD), lambda d: write_tokenizer(d, NEW), read_tokenizer,
        rival=lambda d: write_tokenizer(d, OTHER),
    ),
    "a new report": Case(lambda d: None, lambda d: report(d, NEW), reported, (NOTHING, NEW)),
    "answers": Case(lambda d: None, lambda d: answer(d, rewrite=True), answered,
                    (NOTHING, OLD, NEW), kept=count_answers),
}  # fmt: skip


def check(case: Case, directory: Path, finished: bool = False) -> str:
    """What is found is allowed, and the next writer's is there whole, with nothing beside it."""
    found = case.found(directory)
    if found not in ((NEW,) if finished else case.allowed):
        raise Fault(f"found {found}")
    return found


def check_next(case: Case, directory: Path) -> None:
    """Who writes again leaves the new, and no leftovers of the one that died."""
    case.write(directory)
    if case.found(directory) != NEW:
        raise Fault("what is written next is not there")
    hidden = [path for path in directory.rglob(".*") if path.name != ".gitignore"]
    if hidden:
        raise Fault(f"left for ever: {hidden[0].relative_to(directory)}")


def fresh(case: Case, directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    case.prepare(directory)
    for file in directory.rglob("*"):  # a conversion looks at a source's time
        os.utime(file, (0, 0))
    return directory


def started(write: Callable[[Path], Any], directory: Path, event: int = 0) -> int:
    """Starts a child that writes, and kills itself before its n-th change; returns its number."""
    child = os.fork()
    if child:
        return child
    seen = 0

    def count(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen == event:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
        with before_each_change(count):
            write(directory)
        os._exit(0)
    except BaseException as error:
        print(repr(error)[:300], file=sys.stderr)
    finally:
        os._exit(4)


def was_killed(child: int) -> bool:
    """Waits for the end of a child; tells whether it was killed, or did what it should.

    Raises:
        Fault: neither.
    """
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL, -signal.SIGXFSZ):
        raise Fault(f"the child ended with {code}")
    return code != 0


def killed(write: Callable[[Path], Any], directory: Path, event: int) -> bool:
    """Writes in a child that kills itself before its n-th change; tells whether it got there."""
    return was_killed(started(write, directory, event))
