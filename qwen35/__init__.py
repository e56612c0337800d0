"""Qwen3.5 (gated DeltaNet + GQA hybrids) as pure functions over explicit pytrees, on torch-xla."""
