"""Benchmarks: this project's figures and transformers' on the same work, in one run.

Measurements (`text`, `serving`, `images`, `machine`) run in processes of their own, one side after
the other in alternation (`processes`), so that a machine whose speed wanders treats both alike, and
return `records`. `suite` says which ones a benchmark takes; the modules `…_report` make rows,
tables and plots of several rounds' records.
"""
