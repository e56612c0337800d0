"""Builds from an empty folder: setuptools would take what build/ still holds of earlier commits, a
module that has moved since, into the wheel too. All settings are in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup

shutil.rmtree(Path(__file__).resolve().parent / "build", ignore_errors=True)
setup()
