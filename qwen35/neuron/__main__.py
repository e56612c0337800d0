"""The process of one step: `python -m qwen35.neuron STEP SETTINGS RESULT`.

SETTINGS is a JSON object, RESULT the file that gets the outcome, whole or not at all.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from ..files import aside
from .steps import AbsentError, Settings, step_named


def main(arguments: list[str]) -> int:
    """Runs the step and returns the process's exit code."""
    name, settings, target = arguments
    try:
        outcome = step_named(name).measure(Settings(**json.loads(settings)))
    except AbsentError as error:
        outcome = {"absent": str(error)}
    except Exception as error:
        traceback.print_exc()
        outcome = {"error": f"{type(error).__name__}: {error}"}
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one reports
        aside.write(Path(target), json.dumps(outcome).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
