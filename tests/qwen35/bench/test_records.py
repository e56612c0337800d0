"""Records of measurements: what comes back from another process is what went there."""

from __future__ import annotations

import dataclasses
import json
from typing import get_type_hints

from qwen35.bench.machine import MachineRates
from qwen35.bench.records import from_plain, medians, to_plain
from qwen35.bench.serving import Arrivals, LoadTimes
from qwen35.bench.settings import Settings
from qwen35.bench.suite import PARTS, _jobs
from qwen35.bench.text import DecodeTime, PrefillTime, TextRun


def test_a_record_comes_back_from_json():
    record = TextRun(
        1.5,
        (PrefillTime(8, 0.1, 2.0), PrefillTime(24, 0.2)),
        (DecodeTime(8, 1, 0.01, read_share=0.5),),
        recompilations=0,
    )
    there = json.loads(json.dumps(to_plain(record)))
    assert from_plain(TextRun, there) == record
    load = LoadTimes("0.8", 1.0, 2.0, 0, 0.1, 0.2, None, None)
    arrivals = Arrivals((load,), prefill_rate=90.0, decode_rate=30.0, share_of_ideal=0.8)
    assert from_plain(Arrivals, json.loads(json.dumps(to_plain(arrivals)))) == arrivals


def test_medians_of_numbers_field_by_field():
    rounds = [MachineRates(1.0, 9.0), MachineRates(3.0, 7.0), MachineRates(2.0, 8.0)]
    assert medians(rounds) == MachineRates(2.0, 8.0)
    loads = [LoadTimes("0.8", x, x, 0, x, x, None, None) for x in (1.0, 5.0)]
    assert medians(loads) == LoadTimes("0.8", 3.0, 3.0, 0, 3.0, 3.0, None, None)


def test_every_job_takes_its_arguments_and_returns_a_record():
    """What would else be found after minutes, in another process."""
    jobs = _jobs("DIR", Settings(parts=tuple(PARTS), tp=2))
    assert set(PARTS) <= {name.partition(",")[0] for name in jobs} | {"ttft", "tpot", "throughput"}
    for job in jobs.values():
        hints = get_type_hints(job.measure)
        assert dataclasses.is_dataclass(hints.pop("return"))
        assert set(job.arguments) == set(hints)
        assert json.loads(json.dumps(job.arguments)).keys() == job.arguments.keys()
