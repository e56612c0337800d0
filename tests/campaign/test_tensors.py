"""Files of tensors: headers as the library judges them; whole checkpoints, ranks and states."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import safetensors
import torch
from mutations import EXTREMES, damaged, damaged_bytes, damaged_text
from oracle import Fault, outcome
from safetensors.torch import save_file
from torch.utils import _pytree as pytree

import qwen35
from qwen35.files.compressing import compress
from qwen35.files.conversion import convert
from qwen35.files.tensor_file import TensorFile
from qwen35.sharding.mesh import Mesh

SMALL = qwen35.Config(
    vocab_size=40, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, head_dim=8, linear_num_key_heads=2,
    linear_num_value_heads=2, linear_key_head_dim=4, linear_value_head_dim=4,
    layer_types=("linear_attention", "full_attention"), partial_rotary_factor=0.5, eos_token_id=3,
)  # fmt: skip
INFO = ("dtype", "shape", "data_offsets")


def framed(header: bytes, data: bytes, length: int | None = None) -> bytes:
    """A file with a header, which may state another length of itself."""
    stated = len(header) if length is None else length
    return (stated % 2**64).to_bytes(8, "little") + header + data


def parts(content: bytes) -> tuple[dict, bytes]:
    """A file's header and data."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def of_tensors(*entries: tuple[str, str, list[int], list[int]]) -> dict:
    return {name: dict(zip(INFO, rest, strict=True)) for name, *rest in entries}


HEADERS = [
    (of_tensors(("x", "F32", [2, 3], [0, 24]), ("y", "BF16", [4], [24, 32])), 32),
    (of_tensors(("x", "I64", [], [0, 8]), ("e", "F32", [0, 5], [8, 8])), 8),
    ({"__metadata__": {"format": "pt", "a": "é"}} | of_tensors(("x", "U8", [5], [0, 5])), 5),
]


def damaged_header(draw, header: dict, size: int) -> tuple[bytes, int]:
    how = draw.randrange(4)
    if how == 0:
        return damaged_text(draw, json.dumps(header)), size
    made = damaged(draw, header)
    text = json.dumps(made).encode("utf-8", "surrogatepass")
    return text, max(0, size + draw.choice((0, 0, 0, 0, -1, 1, 8, 1000)))


def test_headers(campaign, tmp_path):
    """The library's verdict is the oracle, but that it takes headers that say a thing twice, and
    sizes that no file has."""
    file = tmp_path / "x.safetensors"

    def make(draw):
        header, size = damaged_header(draw, *draw.choice(HEADERS))
        length = draw.choice((None,) * 20 + (0, 1, len(header) - 1, len(header) + 1, 2**32, 2**63))
        return framed(header, bytes(size), length)

    def check(content):
        file.write_bytes(content)
        found = outcome(lambda: TensorFile(file), qwen35.CheckpointError)
        try:
            with safetensors.safe_open(file, framework="numpy") as library:
                expected = {name: library.get_slice(name).get_shape() for name in library.keys()}
        except (safetensors.SafetensorError, OverflowError, MemoryError):
            expected = None
        if isinstance(found, qwen35.CheckpointError):
            if expected is not None and not stricter(content):
                raise Fault(f"the library takes it: {found}")
            return
        if expected is None:
            if b"-0" not in content:  # which it takes for no count
                raise Fault("the library refuses it")
            return
        if {name: list(found.get_slice(name).get_shape()) for name in found.keys()} != expected:
            raise Fault("the library sees other tensors")

    campaign.try_all("headers", make, check, lambda content: repr(content)[:400])


def stricter(content: bytes) -> bool:
    """Whether a file that the library takes is one that we refuse on purpose: keys that stand
    twice, which its format forbids, more than 64 dimensions, or sizes whose strides are beyond
    torch's int64."""
    end = 8 + int.from_bytes(content[:8], "little")
    try:
        pairs: list[int] = []
        json.loads(content[8:end], object_pairs_hook=lambda p: pairs.append(len(p) - len(dict(p))))
        header = json.loads(content[8:end])
    except ValueError:
        return False
    if any(pairs):
        return True
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    shapes = [entry.get("shape", []) for entry in entries if isinstance(entry, dict)]
    return any(len(shape) > 64 or math.prod(n or 1 for n in shape) >= 2**63 for shape in shapes)


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> dict[str, tuple[Path, qwen35.Params, dict]]:
    """Checkpoints of a small model in every form: where, what they hold, how to load them."""
    top = tmp_path_factory.mktemp("forms")
    params = qwen35.init_params(SMALL, seed=1)
    found = {}

    def add(name: str, **settings) -> None:
        found[name] = (top / name, qwen35.load(top / name, **settings), settings)

    qwen35.save(params, top / "one")
    add("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qwen35.files.checkpoint._SHARD_BYTES", 3000)
        qwen35.save(params, top / "shards")
    add("shards")
    for kind in ("int8", "int4", "fp8"):
        compress(top / "one", top / kind, kind)
        add(kind)
    for kind in (None, "int4"):
        name = f"ranks of {kind}"
        convert(top / "one", top / name, 2, dtype="float32", weights=kind)
        add(name, runtime=qwen35.Runtime(mesh=Mesh(tp=2), rank=1))
    return found


def leaves(tree) -> list[torch.Tensor]:
    return pytree.tree_leaves(tree)


def test_checkpoints(campaign, forms, tmp_path):
    """One file of a checkpoint is damaged: it loads as a model of its configuration, ranks as the
    very same, or is refused."""

    def make(draw):
        name = draw.choice(sorted(forms))
        directory = forms[name][0]
        file = draw.choice(sorted(path.name for path in directory.iterdir()))
        content = (directory / file).read_bytes()
        if file.endswith(".json"):
            if draw.randrange(4):
                content = json.dumps(damaged(draw, json.loads(content))).encode(
                    "utf-8", "surrogatepass"
                )
            else:
                content = damaged_text(draw, content.decode())
        elif draw.randrange(3):
            header, data = parts(content)
            names = sorted(header.keys() - {"__metadata__"})
            chosen = {key: header[key] for key in draw.sample(names, min(3, len(names)))}
            made = damaged(draw, chosen, 1)
            header = {key: value for key, value in header.items() if key not in chosen}
            text = json.dumps(header | (made if isinstance(made, dict) else {"x": made}))
            content = framed(text.encode("utf-8", "surrogatepass"), data)
        else:
            content = damaged_bytes(draw, content)
        return name, file, content

    def check(made):
        name, file, content = made
        directory, expected, settings = forms[name]
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        shutil.copytree(directory, tmp_path / "x")
        (tmp_path / "x" / file).write_bytes(content)
        found = outcome(lambda: qwen35.load(tmp_path / "x", **settings), ValueError)
        if isinstance(found, ValueError):
            return
        config = qwen35.Config.from_pretrained(tmp_path / "x")
        if found.config != config:
            raise Fault("parameters of another configuration than the file's")
        if config == expected.config:
            ours, theirs = leaves(found), leaves(expected)
            if [t.shape for t in ours] != [t.shape for t in theirs]:
                raise Fault("other shapes than the model's")
            same = all(
                torch.equal(a.view(torch.uint8), b.view(torch.uint8))
                for a, b in zip(map(flat, ours), map(flat, theirs), strict=True)
            )
            if not same and (name.startswith("ranks") or file == "generation_config.json"):
                raise Fault("other values than what was converted")
            if not all(t.isfinite().all() for t in ours if t.dtype == torch.float32):
                raise Fault("NaN in what was loaded")

    def show(made):
        name, file, content = made
        original = (forms[name][0] / file).read_bytes()
        place = next((n for n, (a, b) in enumerate(zip(original, content, strict=False)) if a != b),
                     min(len(original), len(content)))  # fmt: skip
        return f"{name}/{file}: from byte {place}: {content[max(0, place - 60) : place + 200]!r}"

    campaign.try_all("checkpoints", make, check, show)


def flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1)


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> tuple[qwen35.Params, bytes]:
    """A model and a file of a state of its."""
    params = qwen35.init_params(SMALL, seed=1)
    state = qwen35.init_state(params, 2, 8)
    logits, state = qwen35.prefill(params, state, torch.tensor([[5, 6, 7], [8, 9, 0]]))
    file = tmp_path_factory.mktemp("states") / "state"
    qwen35.save_state(file, params, state, logits=logits, metadata={"note": "x"})
    return params, file.read_bytes()


def test_states(campaign, states, tmp_path):
    """As bytes, in the header, and made by a writer that says what it wants with a right
    checksum: a state that can be gone on with, or a refusal."""
    from qwen35.files.saved_state import _checksum, load_state

    params, whole = states
    header, data = parts(whole)
    tensors = {n: TensorFile_of(whole, tmp_path).get_slice(n).read() for n in header if n[0] != "_"}
    odd = [value for value in EXTREMES if type(value) in (int, float) and abs(value) < 2**31]

    def make(draw):
        how = draw.randrange(3)
        if how == 0:
            return damaged_bytes(draw, whole)
        if how == 1:
            made = json.dumps(damaged(draw, header)).encode("utf-8", "surrogatepass")
            return framed(made, data)
        changed = {name: tensor.clone() for name, tensor in tensors.items()}
        name = draw.choice(sorted(changed))
        tensor = changed[name]
        what = draw.randrange(6)
        if what == 0:
            del changed[name]
        elif what == 1:
            changed[name] = tensor[:1].clone()
        elif what == 2:
            changed[name] = tensor.to(draw.choice((torch.float32, torch.int32, torch.int64)))
        elif what == 3:
            tensor.view(-1)[draw.randrange(tensor.numel())] = draw.choice(odd)
        elif what == 4:
            changed[name] = tensor.unsqueeze(-1)
        else:
            changed[draw.choice(("new", "layers.9.key", "layers.0.x"))] = tensor.clone()
        file = tmp_path / "made"
        save_file(changed, file, metadata=header["__metadata__"] | {"sha256": _checksum(changed)})
        return file.read_bytes()

    def check(content):
        file = tmp_path / "state"
        file.write_bytes(content)
        saved = outcome(lambda: load_state(file, params, 8), ValueError)
        if isinstance(saved, ValueError):
            return
        position = saved.state.position
        if saved.state.capacity != 8 or not ((0 <= position) & (position <= 8)).all():
            raise Fault(f"positions {position.tolist()} of {saved.state.capacity}")
        room = position < 8
        logits, _ = outcome(
            lambda: qwen35.decode(params, saved.state, torch.tensor([1, 2])[: len(room)], room)
        )
        if not logits.isfinite().all():
            raise Fault("goes on with NaN")

    campaign.try_all("states", make, check, lambda content: repr(content)[:300])


def TensorFile_of(content: bytes, directory: Path) -> TensorFile:
    (directory / "whole").write_bytes(content)
    return TensorFile(directory / "whole")
