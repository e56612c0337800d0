"""The DeltaNet operations that the model calls, and their implementations."""
