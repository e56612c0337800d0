"""The `qwen35` command, and `python -m qwen35`: it can be interrupted before it is imported."""

import sys

from .ending import exit_code


def main() -> int:
    """Runs the command line of this process and returns its exit code."""

    def command() -> int:
        from .commands import cli

        return cli.main()

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
