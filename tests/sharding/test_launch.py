"""Which ranks a process starts; that they then compute the same, `test_command` asks."""

from __future__ import annotations

import argparse
import socket

import pytest
import torch
from torch import distributed

from qwen35.commands.launch import launch
from qwen35.sharding.launch import Ranks, start_ranks
from qwen35.sharding.mesh import Mesh


@pytest.fixture
def torchrun(monkeypatch):
    """torchrun(ranks, rank): the environment that torchrun gives a process."""

    def environment(ranks: int, rank: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for name, value in (
            ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port), ("WORLD_SIZE", ranks),
            ("RANK", rank),
        ):  # fmt: skip
            monkeypatch.setenv(name, str(value))

    return environment


@pytest.mark.parametrize("device", [None, "xla", "cpu"])
def test_one_device(device):
    with start_ranks(1, device) as ranks:
        assert ranks == Ranks(None, 0, device or "xla", 1)
        assert ranks.first and not distributed.is_initialized()


def test_one_process_of_torchrun(torchrun):
    """It joins a group, and leaves it whatever happens inside."""
    torchrun(1, 0)
    with pytest.raises(KeyError), start_ranks(1) as ranks:
        assert ranks == Ranks(None, 0, "cpu", 1)
        assert ranks.first and distributed.get_world_size() == 1
        raise KeyError
    assert not distributed.is_initialized()


def test_which_process_comes_first():
    mesh = Mesh(tp=4)
    assert Ranks(mesh, None, "xla", 1).first  # all ranks are here
    assert [Ranks(mesh, rank, "cpu", 4).first for rank in range(4)] == [True, False, False, False]


def test_what_cannot_start(torchrun):
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2"), start_ranks(2, "cpu"):
        pass
    with pytest.raises(ValueError, match="tp must be a positive integer"), start_ranks(0):
        pass
    torchrun(2, 0)
    with pytest.raises(ValueError, match="2 processes were started, but"), start_ranks(4):
        pass
    with pytest.raises(ValueError, match="timeout must be a positive"), start_ranks(2, timeout=0):
        pass


ALONE = argparse.Namespace(tp=2, dp=1, timeout=1.0)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_other_never_comes_says_so(torchrun, rank):
    """A command ends with a sentence then, where torch raises what it raises for mistakes too."""
    torchrun(2, rank)
    with pytest.raises(ConnectionError, match=f"^rank {rank} ends, since another has gone"):
        with launch(ALONE, "cpu"):
            pass


def test_a_mistake_is_no_other_rank_s(torchrun, capsys):
    torchrun(1, 0)
    with pytest.raises(RuntimeError, match="size") as found:
        with launch(argparse.Namespace(**vars(ALONE) | {"tp": 1}), "cpu"):
            torch.ones(2) @ torch.ones(3)
    assert not isinstance(found.value, ConnectionError)
    assert "qwen35: rank 0: RuntimeError" in capsys.readouterr().err
    assert not distributed.is_initialized()
