#!/usr/bin/env python
"""`qwen35 bench` of text alone; takes its options."""

import sys

from qwen35.commands.cli import main

sys.exit(main(["bench", "ttft", "tpot", "memory", "compile", *sys.argv[1:]]))
