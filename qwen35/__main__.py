"""The `qwen35` command, and `python -m qwen35`: it can be interrupted before it is imported."""

import sys

from .ending import exit_code, guard_streams, stop_at_signals


def main() -> int:
    """Runs the command line of this process and returns its exit code."""
    guard_streams()

    def command() -> int:
        from .commands import cli

        return cli.main()

    try:
        return exit_code(command)
    finally:
        stop_at_signals()


if __name__ == "__main__":
    sys.exit(main())
