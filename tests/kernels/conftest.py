"""Lets the kernel tests import `harness`, `grid` and others, which stand beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
