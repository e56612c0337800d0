"""Running the NKI kernels on the emulator, for the tests."""

import numpy as np

from qwen35.kernels import emulator, oracle

STEP = emulator.load("nki_recurrent", "gated_delta_step")
CHUNK = emulator.load("nki_chunk", "gated_delta_chunk")
PREFILL = emulator.load("nki_fused", "gated_delta_prefill")


def simulate(kernel, inputs, half=False, strictness="isa", **options):
    """The `Simulation` of `oracle.Inputs`; with `half`, query, key and value are bfloat16.

    By default under the tighter of the emulator's strictnesses: the kernels have to hold on to it.
    """
    arrays = list(step_arrays(inputs) if kernel is STEP else inputs[:5])
    if half:
        arrays[:3] = [emulator.HostTensor(x, "bfloat16") for x in arrays[:3]]
    return emulator.simulate(kernel, *arrays, inputs.state, strictness=strictness, **options)


def step_arrays(inputs):
    """The step kernel's inputs before the state, of the first token: it takes the decay itself."""
    arrays = [x[:, 0] for x in inputs[:5]]
    return (*arrays[:3], np.exp(arrays[3]), arrays[4])


def run(kernel, inputs, half=False, **options):
    """Output with a token axis, and state."""
    out, state = simulate(kernel, inputs, half, **options).outputs
    return (out[:, None] if kernel is STEP else out), state


def round_inputs(inputs):
    """The inputs as bfloat16 holds query, key and value."""
    return oracle.Inputs(*(oracle.bfloat16(x) for x in inputs[:3]), *inputs[3:])


def errors(kernel, inputs, half=False, **options):
    """Relative errors of output and state against the definition on the same (rounded) inputs."""
    out, state = run(kernel, inputs, half, **options)
    expected, expected_state = oracle.delta_rule(*(round_inputs(inputs) if half else inputs))
    return oracle.relative_error(out, expected), oracle.relative_error(state, expected_state)


def tokens(inputs, start, stop, state=None):
    """The inputs of a range of tokens, from another state if given."""
    cut = [x[:, start:stop] for x in inputs[:5]]
    return oracle.Inputs(*cut, inputs.state if state is None else state)


def padded(inputs, multiple):
    """The inputs with padding up to a multiple of `multiple`: beta and log_decay are 0 there, and
    the keys are not, which must not matter."""
    missing = -inputs.key.shape[1] % multiple
    cut = [np.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) for x in inputs[:5]]
    cut[1][:, inputs.key.shape[1] :] = cut[1][:, :1]
    return oracle.Inputs(*cut, inputs.state)
