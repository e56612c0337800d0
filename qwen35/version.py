"""The version, read by pyproject.toml, the command line and every report."""

__version__ = "0.1.0"
