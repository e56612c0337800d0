"""Graphs as objects of study: export, lint, counts, what a rank holds."""
