"""Memory of the vision tower on large images, seen from outside: a process of its own each."""

import json
import subprocess
import sys

import pytest

CHILD = """
import dataclasses, json, sys
import torch
import qwen35
from qwen35.config import VisionConfig

torch.set_num_threads(1)
content, side = json.loads(sys.argv[1]), int(sys.argv[2])
tower = VisionConfig(**content)
sizes = {"num_hidden_layers": 1, "layer_types": (), "vocab_size": 64, "intermediate_size": 64}
config = dataclasses.replace(
    qwen35.presets["27b"], hidden_size=tower.out_hidden_size, vision=tower, **sizes
)
vision = qwen35.device_put(qwen35.init_params(config).vision, "xla")
warm = torch.zeros(4, tower.patch_dim)
qwen35.encode_images(vision, warm, [(1, 2, 2)])


def status(field):
    with open("/proc/self/status") as lines:
        line = next(line for line in lines if line.startswith(field))
    return 1024 * int(line.split()[1])


patches = torch.rand(side * side, tower.patch_dim)
start = status("VmRSS")
with open("/proc/self/clear_refs", "w") as clear:
    clear.write("5")  # the peak starts anew
out = qwen35.encode_images(vision, patches, [(1, side, side)])
assert out.shape == (side * side // 4, tower.out_hidden_size) and out.isfinite().all()
print(status("VmHWM") - start)
"""


def added(content: dict, side: int) -> int:
    """Bytes that an image of side x side patches takes at most, beside weights and patches."""
    command = [sys.executable, "-c", CHILD, json.dumps(content), str(side)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
def test_the_largest_images_fit_at_the_27b_towers_width():
    """2048 x 2048 pixels, 16,384 patches, one layer: less than 4 GB. Its scores alone, held at
    once, would be 17 GB."""
    peak = added({"depth": 1, "out_hidden_size": 5120}, side=128)
    print(f"{peak / 1e9:.2f} GB beside weights and patches")
    assert peak < 4e9


@pytest.mark.slow
def test_more_layers_take_no_more_memory():
    """A layer's activations give way to the next one's: so one layer speaks for all."""
    tower = {"hidden_size": 384, "num_heads": 6, "intermediate_size": 1536, "out_hidden_size": 256}
    one, five = (added(tower | {"depth": depth}, side=64) for depth in (1, 5))
    print(f"one layer {one / 1e6:.0f} MB, five {five / 1e6:.0f} MB")
    assert five < 1.25 * one
