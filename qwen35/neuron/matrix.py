"""Which versions of AWS's packages belong together, as its documentation has them.

From the release contents of Neuron SDK 2.31 and 2.33 and the installation pages of 2.32 and 2.33.
Nothing here has been installed or run on a device by this project.
"""

from __future__ import annotations

from dataclasses import dataclass

INDEX = "https://pip.repos.neuron.amazonaws.com"  # AWS's own package index, by its documentation


@dataclass(frozen=True)
class Requirement:
    """A package of a route.

    Attributes:
        name: the distribution's.
        version: the matrix's.
        series: how other versions begin that serve as well: "2.9." for all of 2.9.
    """

    name: str
    version: str
    series: tuple[str, ...] = ()


@dataclass(frozen=True)
class Route:
    """A way from PyTorch to the device.

    Attributes:
        title: how a person calls it.
        packages: Python's.
        system: the machine's packages with their least versions.
        python: the oldest and newest Python.
        install: what installs `packages`, a line of a shell.
    """

    title: str
    packages: tuple[Requirement, ...]
    system: dict[str, str]
    python: tuple[tuple[int, int], tuple[int, int]]
    install: str


ROUTES = {
    "xla": Route(
        "PyTorch/XLA (SDK 2.31.1)",
        (
            Requirement("torch", "2.9.1", ("2.9.",)),
            Requirement("torch-xla", "2.9.0", ("2.9.",)),
            Requirement("torch-neuronx", "2.9.0.2.15.32035", ("2.9.",)),
            Requirement("libneuronxla", "2.2.17544.0", ("2.2.",)),
            Requirement("neuronx-cc", "2.26.6360.0"),
            Requirement("nki", "0.5.0"),
        ),
        {
            "aws-neuronx-dkms": "2.29",
            "aws-neuronx-runtime-lib": "2.33",
            "aws-neuronx-collectives": "2.33",
        },
        ((3, 11), (3, 13)),
        "python -m pip install torch-neuronx==2.9.0.2.15.32035 neuronx-cc==2.26.6360.0 nki==0.5.0 "
        f"--extra-index-url {INDEX}",
    ),
    "native": Route(
        "TorchNeuron (SDK 2.33)",
        (
            Requirement("torch", "2.14.0", ("2.13.", "2.14.")),
            Requirement("torch-neuronx", "2.14.3.0", ("2.13.", "2.14.")),
            Requirement("neuronx-cc", "2.28.7631.0", ("2.28.",)),
            Requirement("nki", "0.7.0", ("0.7.",)),
        ),
        {
            "aws-neuronx-dkms": "2.31",
            "aws-neuronx-runtime-lib": "2.35",
            "aws-neuronx-collectives": "2.35",
        },
        ((3, 12), (3, 14)),
        'python -m pip install "torch-neuronx==2.14.*" "neuronx-cc==2.*" nki '
        f"--extra-index-url {INDEX} --extra-index-url https://download.pytorch.org/whl/cpu",
    ),
}

# What the public index has under names of AWS's packages: they hold nothing.
PLACEHOLDERS = {
    "torch-neuronx": ("1.0",),
    "libneuronxla": ("1.0",),
    "neuronx-cc": ("1.0", "1.0.post1"),
    "nki": ("0.0.1",),
}

NAMES = sorted({required.name for route in ROUTES.values() for required in route.packages})
SYSTEM = sorted(
    {name for route in ROUTES.values() for name in route.system} | {"aws-neuronx-tools"}
)

# Environment variables that are read here, with those that only say where things go.
VARIABLES = (
    "PJRT_DEVICE",
    "NEURON_LOGICAL_NC_CONFIG",
    "NEURON_RT_VIRTUAL_CORE_SIZE",
    "NEURON_RT_VISIBLE_CORES",
    "NEURON_RT_NUM_CORES",
    "NEURON_RT_STOCHASTIC_ROUNDING_EN",
    "NEURON_RT_INSPECT_ENABLE",
    "NEURON_PLATFORM_TARGET_OVERRIDE",
    "NEURON_EXTRACT_GRAPHS_ONLY",
    "NEURON_COMPILE_CACHE_URL",
    "NEURON_CC_FLAGS",
    "NEURON_FUSE_SOFTMAX",
    "NKI_SIMULATOR",
    "NKI_PRECISE_FP",
    "XLA_USE_BF16",
    "XLA_DOWNCAST_BF16",
)
CACHE = "/var/tmp/neuron-compile-cache"  # where compiled graphs go, unless a variable says
