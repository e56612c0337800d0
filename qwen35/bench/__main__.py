"""The process of one measurement: `python -m qwen35.bench MODULE.FUNCTION ARGUMENTS`.

The function, of a module of this package, gets the arguments, a JSON object, by name. The record
that it returns is the last line of standard output, as JSON. One of several ranks takes part in
what the others' processes measure.
"""

import importlib
import json
import os
import signal
import sys

from torch import distributed

from ..sharding import process
from ..xla.progress import count_compilations
from .records import arguments_of, to_plain


def main() -> int:
    module, function = sys.argv[1].split(".")
    measure = getattr(importlib.import_module(f"qwen35.bench.{module}"), function)
    first = os.environ.get("RANK", "0") == "0"
    try:
        with count_compilations(first):
            result = to_plain(measure(**arguments_of(measure, json.loads(sys.argv[2]))))
    except ValueError as error:  # bad input: the parent says it in one line
        result = {"error": str(error)}
    print(json.dumps(result))
    if distributed.is_initialized():
        process.stop()
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent says that it was interrupted
    sys.exit(main())
