"""A forked process and XLA: it is told what it can't do, and never waits for threads it lacks."""

from __future__ import annotations

import multiprocessing
import threading

import pytest
import torch

import qwen35
from qwen35.xla import devices
from qwen35.xla.turns import turn

SECONDS = 60  # after which a child hangs


@pytest.fixture(scope="module")
def double():
    """A compiled function that has run, and its argument."""
    x = qwen35.device_put(torch.ones(3), "xla")
    function = qwen35.jit(lambda x: x * 2)
    assert function(x).cpu().tolist() == [2, 2, 2]
    return function, x


USES = {
    "call": lambda function, x: function(x),
    "compile": lambda function, x: function.compile(x),
    "lower": lambda function, x: function.lower(x),
    "upload": lambda function, x: qwen35.device_put(torch.ones(1), "xla"),
    "download": lambda function, x: qwen35.device_put(x, "cpu"),
    "compute": lambda function, x: devices.at_once(x.device, lambda: x + 1),
}


def in_child(work, *arguments):
    """What a forked process says: the result of `work`, or the error."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def run():
        try:
            theirs.send(work(*arguments))
        except RuntimeError as error:
            theirs.send(error)

    child = context.Process(target=run)
    child.start()
    try:
        assert ours.poll(SECONDS), "the forked process hangs"
        said = ours.recv()
        child.join(SECONDS)
        assert child.exitcode == 0
        return said
    finally:
        child.kill()


@pytest.mark.parametrize("name", USES)
def test_a_forked_process_is_told_that_it_cannot_use_xla(double, name):
    error = in_child(USES[name], *double)
    assert isinstance(error, RuntimeError) and "forked from one that uses XLA" in str(error)
    function, x = double
    assert function(x).cpu().tolist() == [2, 2, 2], "the process itself goes on"


def test_a_process_that_is_forked_in_the_middle_of_a_call_is_told_too(double):
    """The lock that another thread holds then is never given back in the child."""
    held, enough = threading.Event(), threading.Event()

    def hold():
        with turn:
            held.set()
            enough.wait(SECONDS)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        held.wait(SECONDS)
        error = in_child(USES["call"], *double)
    finally:
        enough.set()
        thread.join(SECONDS)
    assert "forked" in str(error)


def test_a_forked_process_computes_on_the_cpu(double):
    said = in_child(lambda: qwen35.device_put(torch.ones(2) + 1, "cpu").tolist())
    assert said == [2, 2]
