"""Progress bars: what a process that forks and is killed leaves of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).resolve().parents[3] / "demo"

PROGRAM = """
import os, signal, sys
from tqdm import tqdm
import qwen35
from qwen35.checks.hub import _silent
from qwen35.xla.progress import progress_bar

lock = tqdm.get_lock()
if not os.fork():
    lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.wait()
params = qwen35.load(sys.argv[1])
sys.stderr.isatty = lambda: True
qwen35.load(sys.argv[1], progress=True)
with progress_bar("count", 2, "token", True) as bar:
    bar.update(2)
_silent()(total=1).close()
print(params.config.num_hidden_layers, bar.n)
"""


def test_a_killed_child_that_held_tqdms_lock_stops_no_load():
    """tqdm's lock is shared over forks: with it, the load waits until the timeout."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, DEMO], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    layers, counted = done.stdout.split()
    assert int(layers) > 0 and counted == "2"
    assert "load: " in done.stderr and "count: 100%" in done.stderr
