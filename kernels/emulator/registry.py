"""The table of modelled `nki.isa` functions: name -> implementation(core, **bound arguments)."""

INSTRUCTIONS = {}


def instruction(function):
    """Register the model of the `nki.isa` function of that name."""
    INSTRUCTIONS[function.__name__] = function
    return function
