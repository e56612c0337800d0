"""Step: time to first token and per token, in the protocol of `bench --device neuron`."""

from __future__ import annotations

from ..bench import neuron
from ..graphs.roofline import PUBLISHED
from ..model.presets import find_preset
from ..sharding.launch import start_ranks
from .outcomes import Tests
from .ranks import config_of, runtime_of
from .steps import Settings


def measure(settings: Settings) -> dict:
    """Runs the step, in every process of the model."""
    name = settings.model or f"{settings.preset}, random weights"
    with start_ranks(settings.tp, "xla") as ranks:
        model = settings.model or config_of(settings)
        figures = neuron.measure(model, name, runtime=runtime_of(ranks), progress=ranks.first)
    tests = Tests()
    for field in ("ttft", "tpot"):
        tests.equal(f"{field} is a time", lambda field=field: _time(figures[field]))
    preset = None if settings.model else find_preset(settings.preset)
    others = [
        {"tpot": entry.tpot, "source": entry.source}  # milliseconds
        for entry in PUBLISHED
        if entry.preset == preset and entry.tp == settings.tp
    ]
    fields = (
        "compile",
        "ttft",
        "tpot",
        "tokens_per_second",
        "prompt",
        "steps",
        "repeats",
        "device",
    )
    kept = {field: figures[field] for field in fields}
    return tests.outcome(**kept, published_by_others=others)


def _time(seconds: float) -> str:
    return "" if 0 < seconds < 3600 else f"{seconds} s"
