"""Names to choose by, which options offer and functions check: options are read without torch."""

from __future__ import annotations

DTYPES = ("float32", "bfloat16")  # of weights and arithmetic
KINDS = ("int8", "int4", "fp8")  # of weights that are quantised as they are read
BLOCKS = "fp8_blocks"  # as published, with scales for blocks of 128 x 128: read, and not made here
EXPORTED = ("int8", "fp8", BLOCKS)  # of weights in a graph for Neuron
KERNELS = ("portable", "nki")  # of DeltaNet layers in a graph for Neuron
FP8 = ("e4m3", "e4m3fn")  # of FP8 weights in a graph for Neuron
