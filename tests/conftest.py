"""Settings that every test shares: one thread, repeatable property tests, one option."""

import importlib.metadata
import signal

import hypothesis
import pytest
import torch

from qwen35.xla.devices import device_name

# Autograd counts the devices when it first runs; on one that comes later it fails.
device_name()

# Property tests draw the same examples in every run, so that a red run can be run again; the
# first call of a shape may compile, so there is no per-example deadline.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")

# The models here are tiny: a second thread costs more in hand-over than it computes, and sums
# split over threads would make results depend on the machine.
torch.set_num_threads(1)

# A shell starts background jobs of a script with SIGINT ignored, and that is inherited; the
# processes that tests interrupt must take it as they do at a keyboard.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """What the oracles are: transformers may be another one than that of the environment."""
    names = ("torch", "torch-xla", "transformers")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--model",
        metavar="DIR",
        default=None,
        help="checkpoint directory for tests/demos/test_text.py instead of the one in demo/",
    )
