"""Checkpoints, rank files and states on disk."""
