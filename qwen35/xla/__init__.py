"""All that knows torch-xla: devices, trees of tensors, tracing, jit."""
