"""What `info` says of instances: sums by hand, and the fewest cores that hold a model."""

import json

import pytest

import qwen35
from qwen35.commands import cli
from qwen35.graphs.instances import INSTANCES, fits

GIB = 2**30


def by_name(config, **options):
    return {fit.instance.name: fit for fit in fits(config, **options)}


def test_27b_in_bfloat16():
    """51 GiB of weights, 48 layers x 48 heads x 64 KiB of state, 64 KiB of cache a token."""
    config = qwen35.presets["27b"]
    found = by_name(config, context=32768)
    assert [fit.instance for fit in found.values()] == list(INSTANCES)
    fit = found["trn2.3xlarge"]
    assert fit.fits and fit.tp == 4
    row = (48 * 48 * 65536 + 32768 * 65536) / 4
    weights = 2 * config.parameter_count / 4
    vision = fit.needed - weights - row  # the tower, of 0.46 B, whose small tensors are whole
    assert 0.9 * 0.46e9 / 2 < vision < 1.2 * 0.46e9 / 2
    assert fit.sequences == pytest.approx((24 * GIB - weights - vision) / row, abs=1)
    assert found["trn2.48xlarge"].tp == 4
    small = found["trn1.2xlarge"]
    assert not small.fits and small.tp == 2 and small.sequences == 0


def test_quantised_it_fits_fewer_cores():
    config = qwen35.presets["27b"]
    found = by_name(config, weights="int4", head="int8")
    assert found["inf2.xlarge"].fits and found["inf2.xlarge"].tp <= 2
    assert found["trn2.3xlarge"].tp == 1


def test_a_context_that_no_core_holds():
    found = by_name(qwen35.presets["27b"], context=10**6)
    assert found["trn2.48xlarge"].tp > 4 and not found["inf2.xlarge"].fits


def test_info_has_a_line_for_each(capsys):
    assert cli.main(["info", "27B", "--context", "32768"]) == 0
    lines = capsys.readouterr().out.splitlines()
    [line] = [line for line in lines if "trn2.3xlarge" in line]
    assert "4 logical cores of 24.0 GiB: 27B bfloat16 at tp 4 fits with 10.7 GiB left" in line
    [line] = [line for line in lines if "inf2.xlarge" in line]
    assert "does not fit: 10.6 GiB a core too much at tp 2" in line
    assert cli.main(["info", "0.8b", "--json", "--weights", "int8"]) == 0
    instances = json.loads(capsys.readouterr().out)["instances"]
    assert all(each["fits"] and each["tp"] == 1 for each in instances)
