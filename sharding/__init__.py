"""Tensor parallelism: mesh, layout and collectives."""
