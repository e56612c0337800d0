"""An emulator of the documented NeuronCore for NKI kernels."""
