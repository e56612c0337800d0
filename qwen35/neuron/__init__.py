"""`qwen35 neuron`: what a machine with a Neuron device lacks, and what runs right on it."""
