"""Lets these tests import the stand-in for a Neuron device, which stands beside them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import neuron_stand_in


@pytest.fixture
def device():
    """A Neuron device, by its name; a small grid."""
    with neuron_stand_in.platform(), neuron_stand_in.small():
        yield
