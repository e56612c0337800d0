"""The process of one measurement: `python -m qwen35.bench MODULE.FUNCTION SETTINGS`.

The function, of a module of this package, gets the settings, a JSON object, and returns plain
values, which are the last line of standard output.
"""

import importlib
import json
import sys


def main() -> int:
    module, function = sys.argv[1].split(".")
    measure = getattr(importlib.import_module(f"qwen35.bench.{module}"), function)
    try:
        result = measure(json.loads(sys.argv[2]))
    except ValueError as error:  # bad input: the parent says it in one line
        result = {"error": str(error)}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
