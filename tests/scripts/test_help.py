"""What the scripts say before there is an environment."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["demo", "test"])
@pytest.mark.parametrize("asked", ["-h", "--help"])
def test_help_installs_nothing(name, asked, tmp_path):
    (tmp_path / "scripts").mkdir()
    for file in (name, "environment.sh"):
        shutil.copy(ROOT / "scripts" / file, tmp_path / "scripts")
    said = subprocess.run(
        [tmp_path / "scripts" / name, asked], capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 0 and said.stderr == ""
    lines = said.stdout.splitlines()
    assert lines[0].endswith("which it makes on the first run.")
    assert len(lines) > 4 and all(f"scripts/{name}" in line for line in lines[1:4])
    assert [path.name for path in tmp_path.iterdir()] == ["scripts"]
