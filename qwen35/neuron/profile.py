"""Step: a profile of the demo's decode step, where AWS's programs for reading one are there."""

from __future__ import annotations

import os
from pathlib import Path

from ..files.checkpoint import load
from ..generation.generate import generate
from ..prompts.tokenizer import Tokenizer
from .machine import read
from .model import demo_of, prompts_of
from .outcomes import Tests
from .steps import AbsentError, Settings

FOLDER = "profile"  # in the run's directory


def measure(settings: Settings) -> dict:
    """Runs the step; the runtime reads the variables when it starts, which is later."""
    profilers = read().profilers
    if not profilers:
        raise AbsentError("no program for profiles was found (aws-neuronx-tools has one)")
    folder = Path(settings.output) / FOLDER
    os.environ |= {
        "NEURON_RT_INSPECT_ENABLE": "1",
        "NEURON_RT_INSPECT_DEVICE_PROFILE": "1",
        "NEURON_RT_INSPECT_OUTPUT_DIR": str(folder),
    }
    directory = demo_of(settings)
    tokenizer = Tokenizer.from_pretrained(directory)
    device = load(directory, dtype="float32", device="xla")
    generate(device, tokenizer, prompts_of(directory)[:1], max_new_tokens=4)
    tests = Tests()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    tests.equal("the runtime wrote profiles", lambda: "" if files else f"{folder} is empty")
    size = sum(path.stat().st_size for path in files)
    return tests.outcome(files=len(files), bytes=size, read_with=f"{profilers[0]} on {FOLDER}/")
