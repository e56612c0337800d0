"""Scores: perplexity, agreement with transformers, lm-eval's tasks."""
