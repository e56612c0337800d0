"""Memory of the vision tower on large images, seen from outside: a process of its own each."""

import json
import subprocess
import sys

import pytest

CHILD = """
import dataclasses, json, sys
import torch
import qwen35
from qwen35.model.config import VisionConfig

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
for _ in range(2):  # the first time compiles
    start = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")  # the peak starts anew
    out = qwen35.encode_images(vision, patches, [(1, side, side)])
    assert out.shape == (side * side // 4, tower.out_hidden_size) and out.isfinite().all()
    del out
    print(status("VmHWM") - start)
"""


def added(content: dict, side: int) -> tuple[int, int]:
    """Bytes that an image of side x side patches takes at most, beside weights and patches: with
    and without compiling."""
    command = [sys.executable, "-c", CHILD, json.dumps(content), str(side)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    first, second = map(int, done.stdout.split())
    return first, second


@pytest.mark.slow
def test_the_largest_images_fit_at_the_27b_towers_width():
    """2048 x 2048 pixels, 16,384 patches, one layer: less than 4 GB. Its scores alone, held at
    once, would be 17 GB."""
    peak, _ = added({"depth": 1, "out_hidden_size": 5120}, side=128)
    print(f"{peak / 1e9:.2f} GB beside weights and patches")
    assert peak < 4e9


@pytest.mark.slow
def test_a_further_layer_takes_little_more_than_its_output():
    """XLA keeps about 1.2 tensors [patches, hidden] a layer: 90 MB at the 27B tower's width and
    16,384 patches, so that all 27 layers take 3.3 GB with one layer's 1 GB. A layer's other
    activations are seven times as much and give way to the next one's. Twice an output leaves
    room for what the allocator does from run to run (20 MB here)."""
    tower = {"hidden_size": 384, "num_heads": 6, "intermediate_size": 1536, "out_hidden_size": 256}
    one, many = (added(tower | {"depth": depth}, side=64)[1] for depth in (1, 17))
    output = 64 * 64 * 384 * 4
    print(f"one layer {one / 1e6:.0f} MB, 17 {many / 1e6:.0f} MB, output {output / 1e6:.1f} MB")
    assert many - one < 16 * 2 * output
