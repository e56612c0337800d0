"""What is put into the environment that torch-xla reads."""

from __future__ import annotations

import os

import pytest

from qwen35.xla.environment import set_cpu_flag


@pytest.mark.parametrize(
    ("device", "before", "after"),
    [
        ("CPU", "", "--xla_level=0"),
        ("CPU", "--xla_other=1", "--xla_other=1 --xla_level=0"),
        ("CPU", "--xla_level=2", "--xla_level=2"),
        ("CPU", "--xla_level_of_it=2", "--xla_level_of_it=2 --xla_level=0"),
        ("NEURON", "", ""),
    ],
)
def test_a_flag_is_for_the_processor_and_the_user_s_own_counts(device, before, after, monkeypatch):
    monkeypatch.setenv("PJRT_DEVICE", device)
    monkeypatch.setenv("XLA_FLAGS", before)
    set_cpu_flag("xla_level", "0")
    assert os.environ["XLA_FLAGS"] == after
