"""Benchmarks: this project's figures and transformers' on the same work, in one run.

Measurements run in processes of their own, one side after the other in alternation (`processes`),
so that a machine whose speed wanders treats both alike. `command` is the command line.
"""
