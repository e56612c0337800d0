"""A state in a file: what comes back, in another process too, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree

import qwen35
from qwen35.files import saved_state

NAME, OTHER = "value_heads_x2_tied", "equal_heads"

PROGRAM = """
import sys, torch, qwen35
directory, file = sys.argv[1:]
params = qwen35.load(directory)
saved = qwen35.load_state(file, params, capacity=64)
token, state, tokens = saved.logits.argmax(-1), saved.state, []
for _ in range(12):
    tokens.append(token.tolist())
    logits, state = qwen35.decode(params, state, token)
    token = logits.argmax(-1)
print(tokens, saved.metadata["note"])
"""


def prompt(params, batch=2, length=21):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(params.config.vocab_size, (batch, length), generator=generator)


@pytest.fixture(scope="module")
def read(load):
    """Parameters, logits and a ragged state, which also remembers images."""
    params = load(NAME)
    state = qwen35.init_state(params, batch=2, capacity=64)
    lengths = torch.tensor([21, 9])
    logits, state = qwen35.prefill(params, state, prompt(params), lengths)
    return params, logits, state._replace(rope_offset=torch.tensor([-3, 2], dtype=torch.int32))


def go_on(params, state, token, steps=12):
    tokens = []
    for _ in range(steps):
        tokens.append(token.tolist())
        logits, state = qwen35.decode(params, state, token)
        token = logits.argmax(-1)
    return tokens


def test_a_state_goes_on_in_another_process(read, reference, tmp_path):
    params, logits, state = read
    file = tmp_path / "conversation.safetensors"
    qwen35.save_state(file, params, state, logits=logits, metadata={"note": "twice → once"})
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(reference(NAME).directory), str(file)],
        capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert result.stdout.strip() == f"{go_on(params, state, logits.argmax(-1))} twice → once"


@pytest.mark.parametrize("device", ["cpu", "xla"])
def test_a_state_comes_back_whole(read, load, tmp_path, device):
    """Every valid value, on the device; the file holds no unused capacity."""
    _, _, state = read
    file = tmp_path / "state"
    qwen35.save_state(file, load(NAME, device), qwen35.device_put(state, device))
    sizes = {name: list(tensor.shape) for name, tensor in load_file(file).items()}
    assert all(21 in shape for name, shape in sizes.items() if "key" in name or "value" in name)
    saved = qwen35.load_state(file, load(NAME, device), capacity=64)
    assert saved.logits is None and saved.metadata == {}
    assert saved.state.position.device.type == device
    back = qwen35.device_put(saved.state, "cpu")
    assert torch.equal(back.position, state.position)
    assert torch.equal(back.rope_offset, state.rope_offset)
    for ours, theirs in zip(back.layers, state.layers, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            if isinstance(theirs, qwen35.AttentionState):
                axis = b.shape.index(64)
                a, b = a.narrow(axis, 0, 21), b.narrow(axis, 0, 21)
            assert torch.equal(a, b)


def test_bfloat16(reference, tmp_path):
    params = qwen35.load(reference(NAME).directory, dtype="bfloat16")
    state = qwen35.init_state(params, batch=1, capacity=8)
    _, state = qwen35.prefill(params, state, prompt(params, 1, 8))
    qwen35.save_state(tmp_path / "state", params, state)
    back = qwen35.load_state(tmp_path / "state", params).state
    for a, b in zip(pytree.tree_leaves(back), pytree.tree_leaves(state), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_bfloat16_of_one_device_goes_on_on_the_other(reference, tmp_path):
    """On XLA:CPU the state is bits; in the file it is bfloat16, whoever wrote it."""
    here = qwen35.load(reference(NAME).directory, dtype="bfloat16")
    there = qwen35.device_put(here, "xla")
    for params, other in ((here, there), (there, here)):
        tokens = qwen35.device_put(prompt(params), params.device.type)
        _, state = qwen35.prefill(params, qwen35.init_state(params, 2, 32), tokens)
        qwen35.save_state(tmp_path / "state", params, state)
        kept = load_file(tmp_path / "state")
        assert {t.dtype for name, t in kept.items() if name.endswith(("conv", "key", "value"))} == {
            torch.bfloat16
        }
        results = []
        for target in (params, other):
            again = qwen35.load_state(tmp_path / "state", target, capacity=32).state
            token = qwen35.device_put(torch.tensor([3, 5]), target.device.type)
            results.append(qwen35.decode(target, again, token)[0].cpu())
        # Activations are bfloat16 on the one and float32 on the other.
        torch.testing.assert_close(*results, rtol=0, atol=0.05 * results[0].abs().max().item())


def test_a_larger_capacity_changes_nothing(read, tmp_path):
    """Loaded with less or more room than it had, and grown in memory."""
    params, logits, state = read
    qwen35.save_state(tmp_path / "state", params, state)
    expected = go_on(params, state, logits.argmax(-1))
    for capacity in (33, 128):
        loaded = qwen35.load_state(tmp_path / "state", params, capacity).state
        assert loaded.capacity == capacity
        assert go_on(params, loaded, logits.argmax(-1)) == expected
    grown = qwen35.grow(state, 100)
    assert grown.capacity == 100 and qwen35.grow(state, 64) is state
    assert go_on(params, grown, logits.argmax(-1)) == expected
    with pytest.raises(ValueError, match="64 can't shrink to 63"):
        qwen35.grow(state, 63)
    with pytest.raises(ValueError, match="21 can't shrink to 20"):
        qwen35.load_state(tmp_path / "state", params, capacity=20)


def test_another_models_state_is_refused(read, load, reference, tmp_path):
    """Another geometry, other weights of the same, another dtype: by name."""
    params, _, state = read
    qwen35.save_state(tmp_path / "state", params, state)
    changed = qwen35.init_params(params.config, seed=1)
    for other in (
        load(OTHER),
        changed,
        qwen35.load(reference(NAME).directory, dtype="bfloat16"),
    ):
        with pytest.raises(qwen35.CheckpointError, match=r"another model .* layers of width"):
            qwen35.load_state(tmp_path / "state", other)


def test_damaged_files_are_refused(read, tmp_path):
    params, _, state = read
    file = tmp_path / "state"
    qwen35.save_state(file, params, state)
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"x" * 100):
        file.write_bytes(content)
        with pytest.raises(qwen35.CheckpointError, match="state: not a readable"):
            qwen35.load_state(file, params)
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(qwen35.CheckpointError, match="not a saved state"):
        qwen35.load_state(file, params)
    file.write_bytes(whole)
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    tensors = load_file(file)
    del tensors["layers.0.conv"]
    checksum = {"sha256": saved_state._checksum(tensors)}
    save_file(tensors, file, metadata=header["__metadata__"] | checksum)
    with pytest.raises(qwen35.CheckpointError, match=r"layers\.0\.conv' is missing"):
        qwen35.load_state(file, params)


def other(state, **changes):
    """The state with tensors of layer 0, which is DeltaNet's, or of its own replaced."""
    own = {name: value for name, value in changes.items() if name in state._fields}
    layer = state.layers[0]._replace(**{n: v for n, v in changes.items() if n not in own})
    return state._replace(layers=(layer, *state.layers[1:]), **own)


def counts(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"position": counts(999, 9)}, "position 999 is past its 64"),
        ({"position": counts(-1, 9)}, "positions .* that no tokens reach"),
        ({"rope_offset": counts(0, -10)}, "positions .* that no tokens reach"),
        ({"position": counts(3.5, 1.0, dtype=torch.float32)}, "position is .* torch.float32"),
        ({"position": counts(3, 1, dtype=torch.int64)}, "position is .* torch.int64"),
        ({"position": counts(3)}, r"rope_offset is \[2\] .* this model's is \[1\]"),
        ({"position": counts()}, "no list of a count for each row"),
        ({"rope_offset": counts(0, 0, 0)}, r"rope_offset is \[3\]"),
        ({"recurrent": lambda old: old[:, :1]}, r"layers\.0\.recurrent is \["),
        ({"recurrent": lambda old: old.double()}, "recurrent is .* torch.float64"),
        ({"conv": lambda old: old[:1]}, r"layers\.0\.conv is \[1, "),
        ({"conv": lambda old: old * float("nan")}, "conv holds NaN"),
        ({"recurrent": lambda old: old + float("inf")}, "recurrent holds NaN or infinite"),
    ],
)
def test_what_no_model_leaves_is_neither_written_nor_read(
    read, tmp_path, monkeypatch, changes, says
):
    """A file with a right checksum can still hold it: made by a writer that does not look."""
    params, _, state = read
    layer = state.layers[0]
    made = {
        name: value(getattr(layer, name)) if callable(value) else value
        for name, value in changes.items()
    }
    bad = other(state, **made)
    with pytest.raises(ValueError, match="can be gone on with: .*" + says):
        qwen35.save_state(tmp_path / "state", params, bad)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(saved_state, "_fault", lambda *_: None)
        qwen35.save_state(tmp_path / "state", params, bad)
    with pytest.raises(qwen35.CheckpointError, match="state: "):
        qwen35.load_state(tmp_path / "state", params)


@pytest.mark.parametrize(
    "logits", [torch.zeros(2, 3), torch.zeros(1, 97), torch.zeros(2, 97).half()]
)
def test_logits_are_those_of_the_model(read, tmp_path, logits):
    params, _, state = read
    with pytest.raises(ValueError, match=r"logits is \["):
        qwen35.save_state(tmp_path / "state", params, state, logits=logits)
    with pytest.raises(ValueError, match="logits holds NaN"):
        nan = torch.full((2, params.config.vocab_size), float("nan"))
        qwen35.save_state(tmp_path / "state", params, state, logits=nan)


@pytest.mark.parametrize("metadata", [{"note": 3}, {3: "note"}])
def test_metadata_is_text(read, tmp_path, metadata):
    params, _, state = read
    with pytest.raises(ValueError, match="metadata must be texts by name"):
        qwen35.save_state(tmp_path / "state", params, state, metadata=metadata)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": None}, "another model"),
        ({"sha256": None}, "not those that were written"),
        ({"format": None}, "not a saved state"),
        ({"metadata": "[1]"}, "a state's metadata is a JSON object"),
        ({"metadata": '{"chat": 3}'}, "a state's metadata is texts by name"),
        ({"metadata": None}, "a state's metadata is needed"),
    ],
)
def test_a_header_that_says_something_else(read, tmp_path, change, says):
    params, _, state = read
    file = tmp_path / "state"
    qwen35.save_state(file, params, state)
    with safe_open(file, framework="pt") as opened:
        header = {name: text for name, text in (opened.metadata() | change).items() if text}
    save_file(load_file(file), file, metadata=header)
    with pytest.raises(qwen35.CheckpointError, match=says):
        qwen35.load_state(file, params)


def test_no_file_is_named(read, tmp_path):
    with pytest.raises(qwen35.CheckpointError, match=r"nothing: .*No such file"):
        qwen35.load_state(tmp_path / "nothing", read[0])


def test_changed_values_are_refused(read, tmp_path):
    """One bit of one tensor, which safetensors itself would not notice."""
    params, _, state = read
    file = tmp_path / "state"
    qwen35.save_state(file, params, state)
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    with pytest.raises(qwen35.CheckpointError, match="not those that were written"):
        qwen35.load_state(file, params)


def test_a_failed_save_leaves_the_old_file(read, tmp_path, monkeypatch):
    params, _, state = read
    file = tmp_path / "state"
    file.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        qwen35.save_state(file, params, state)
    assert file.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
