"""Prompts to streamed text: sampling, batches, the engine, conversations."""
