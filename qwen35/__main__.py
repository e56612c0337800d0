"""`python -m qwen35` is the `qwen35` command."""

import sys

from .commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
