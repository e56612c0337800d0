"""Qwen3.5 as a model of lm-eval, the evaluation harness of EleutherAI, under the name "qwen35".

To import this module is to register the model. lm-eval 0.4 knows the models of its own package and
has no entry point for others, so its command line is reached through here:

    python -m qwen35.evaluation.harness run --model qwen35 --model_args pretrained=DIR --tasks NAME
"""

from __future__ import annotations

import sys

from ..checks.extras import exit_unless_installed
from ..ending import exit_code, guard_streams

__all__ = ["Qwen35LM"]

if __name__ == "__main__":

    def command() -> int:
        """Runs lm-eval's command line. Its imports take seconds, and can be interrupted."""
        from lm_eval.__main__ import cli_evaluate

        from . import lm_eval_model  # noqa: F401 - which registers the model

        try:
            cli_evaluate()
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            print(f"qwen35: error: {error}", file=sys.stderr)
            return 2
        return 0

    guard_streams()
    exit_unless_installed("lm_eval", "lm-eval", "evals")
    sys.exit(exit_code(command))

from .lm_eval_model import Qwen35LM
