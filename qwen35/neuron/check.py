"""`qwen35 neuron check`: what was found on a machine, judged against the version matrix."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .machine import Machine, cache_of, describe
from .matrix import INDEX, PLACEHOLDERS, ROUTES, Requirement, Route

OK, NOTE, WRONG = "ok", "note", "wrong"

_FEW_FILES = 20  # AWS's wheels have hundreds; what keeps a name on the public index has a handful
_FREE = 50e9  # bytes: what compiled graphs of a large model and their leftovers can take
_HOST = 64e9  # bytes: half of what the smallest instance with a Trainium2 has


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what.
        level: OK; NOTE, which a person should know; WRONG, without whose mending it will not run,
            or not as it is meant to.
        text: what was found.
        mend: a line for a shell that mends it, or what to do; "" where there is nothing to do.
    """

    subject: str
    level: str
    text: str
    mend: str = ""


def route_of(machine: Machine) -> str:
    """Returns the route that the installed torch-neuronx belongs to; without one, PyTorch/XLA."""
    package = machine.packages.get("torch-neuronx")
    for name, route in ROUTES.items():
        [required] = [r for r in route.packages if r.name == "torch-neuronx"]
        if package is not None and package.version.startswith(required.series):
            return name
    return "xla"


def check(machine: Machine, route: str | None = None) -> list[Finding]:
    """Judges what was found.

    Args:
        machine: what `machine.read` found.
        route: a key of `ROUTES`; None is `route_of`.
    """
    name = route or route_of(machine)
    chosen = ROUTES[name]
    found = [_python(machine, chosen), *(_package(machine, chosen, r) for r in chosen.packages)]
    if name == "native":
        found.append(
            Finding(
                "route",
                WRONG,
                "this package compiles through torch-xla and needs torch 2.9: it does not run "
                f"through {chosen.title} yet",
                ROUTES["xla"].install + "   # in an environment of its own",
            )
        )
    return [
        *found,
        *_system(machine, chosen),
        _driver(machine),
        *_devices(machine),
        *_memory(machine),
        *_environment(machine.environment, machine),
        _profilers(machine),
    ]


def ready(findings: list[Finding]) -> bool:
    """Tells whether nothing has to be mended."""
    return all(finding.level != WRONG for finding in findings)


def report(machine: Machine, findings: list[Finding], route: str) -> dict[str, Any]:
    """Returns machine and findings as JSON has them."""
    return {
        "ready": ready(findings),
        "route": route,
        "machine": describe(machine),
        "findings": [asdict(finding) for finding in findings],
    }


def render(findings: list[Finding], route: str) -> str:
    """Writes the findings for a terminal, each with the line that mends it, and the verdict."""
    lines = [f"Against the versions of {ROUTES[route].title}:"]
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        lines.append(f"  {finding.level:5}  {finding.subject:{width}}  {finding.text}")
        if finding.mend:
            lines.append(f"         {'':{width}}  > {finding.mend}")
    wrong = sum(finding.level == WRONG for finding in findings)
    verdict = f"not ready: {wrong} of {len(findings)} findings have to be mended"
    return "\n".join([*lines, "ready" if wrong == 0 else verdict])


def _python(machine: Machine, route: Route) -> Finding:
    oldest, newest = route.python
    text = f"{machine.python[0]}.{machine.python[1]}"
    if oldest <= machine.python <= newest:
        return Finding("python", OK, text)
    wanted = f"{oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}"
    mend = f"python{newest[0]}.{newest[1]} -m venv neuron && . neuron/bin/activate"
    return Finding("python", WRONG, f"{text}; {wanted} is needed", mend)


def _package(machine: Machine, route: Route, required: Requirement) -> Finding:
    name, wanted = required.name, required.version
    package = machine.packages.get(name)
    if package is None:
        return Finding(name, WRONG, f"is not installed; {wanted} is needed", route.install)
    version = package.version.partition("+")[0]  # AWS's wheels name a build behind it
    few = package.files is not None and package.files < _FEW_FILES
    if name in PLACEHOLDERS and (version in PLACEHOLDERS[name] or few):
        return Finding(
            name,
            WRONG,
            f"{package.version} is the public index's placeholder of that name, and empty",
            f"python -m pip uninstall --yes {name} && {route.install}",
        )
    if version == wanted:
        return Finding(name, OK, package.version)
    if version.startswith(required.series):
        level = OK if name.startswith("torch") and name != "torch-neuronx" else NOTE
        return Finding(name, level, f"{package.version}; the matrix has {wanted}")
    text = f"{package.version}; {wanted} is needed"
    if name == "torch-neuronx":
        text += ": other series of this name are another backend"
    if name in ("neuronx-cc", "nki"):
        text += ": the compiler refuses kernels of another nki"
    return Finding(name, WRONG, text, f"{_without_index(name, wanted)}")


def _without_index(name: str, version: str) -> str:
    extra = f" --extra-index-url {INDEX}" if name in PLACEHOLDERS else ""
    return f"python -m pip install {name}=={version}{extra}"


def _system(machine: Machine, route: Route) -> Iterator[Finding]:
    for name, least in route.system.items():
        there = machine.system.get(name)
        install = f'sudo apt-get install -y "{name}={least}.*"   # Amazon Linux: sudo dnf install'
        if there is None:
            yield Finding(name, WRONG, f"is not installed; {least} or newer is needed", install)
        elif _numbers(there) < _numbers(least):
            yield Finding(name, WRONG, f"{there}; {least} or newer is needed", install)
        else:
            yield Finding(name, OK, there)


def _driver(machine: Machine) -> Finding:
    if machine.driver is None:
        return Finding("driver", WRONG, "the kernel module neuron is not loaded",
                       "sudo modprobe neuron")  # fmt: skip
    package = machine.system.get("aws-neuronx-dkms")
    if package is not None and _numbers(package)[:2] != _numbers(machine.driver)[:2]:
        return Finding(
            "driver", WRONG, f"{machine.driver} is loaded, and aws-neuronx-dkms is {package}",
            "sudo modprobe -r neuron && sudo modprobe neuron",
        )  # fmt: skip
    return Finding("driver", OK, machine.driver)


def _devices(machine: Machine) -> Iterator[Finding]:
    if not machine.devices:
        why = f"; {machine.listing}" if machine.listing else ""
        yield Finding("devices", WRONG, f"none was found{why}",
                      "run this on a trn2 instance")  # fmt: skip
        return
    cores = sum(device.cores for device in machine.devices)
    text = f"{len(machine.devices)}, {cores} logical cores"
    instance = machine.instance or ""
    if instance:
        text += f", {instance}"
    if instance and not instance.lower().startswith("trn2"):
        yield Finding("devices", NOTE, f"{text}: the NKI kernels are for Trainium2; "
                      "Runtime(kernels=\"portable\") runs anywhere")  # fmt: skip
    elif machine.listing:
        yield Finding("devices", NOTE, f"{text}, as the driver tells; {machine.listing}",
                      "sudo apt-get install -y aws-neuronx-tools")  # fmt: skip
    else:
        yield Finding("devices", OK, text)
    if not machine.nodes:
        yield Finding("device files", WRONG, "there is no /dev/neuron0: in a container it has to "
                      "be handed in", "docker run --device=/dev/neuron0 ...")  # fmt: skip
    busy = ",".join(map(str, sorted({n for device in machine.devices for n in device.processes})))
    if busy:
        yield Finding("device use", WRONG, f"processes have it: {busy}",
                      f"ps -fp {busy}   # and end what should not run")  # fmt: skip


def _memory(machine: Machine) -> Iterator[Finding]:
    sizes = [device.memory for device in machine.devices if device.memory]
    if sizes:
        cores = sum(device.cores for device in machine.devices)
        yield Finding("device memory", OK, f"{sum(sizes) / 2**30:.0f} GiB, "
                      f"{sum(sizes) / 2**30 / max(cores, 1):.0f} a logical core")  # fmt: skip
    host = f"{machine.memory / 1e9:.0f} GB"
    if machine.memory < _HOST:
        yield Finding("host memory", NOTE, f"{host}: compiling a model of 8B has run out of the "
                      "host's memory for others")  # fmt: skip
    else:
        yield Finding("host memory", OK, host)
    cache = cache_of(machine.environment)
    if machine.free is None:
        yield Finding("compile cache", OK, cache)
    elif machine.free < _FREE:
        yield Finding("compile cache", NOTE, f"{cache}: {machine.free / 1e9:.0f} GB are free",
                      "export NEURON_COMPILE_CACHE_URL=DIR   # on a larger disk")  # fmt: skip
    else:
        yield Finding("compile cache", OK, f"{cache}: {machine.free / 1e9:.0f} GB are free")


# What a variable must not be, with what it does then: a pattern for its value.
_WRONG_VALUES = (
    ("PJRT_DEVICE", r"(?!NEURON$).*", "torch-xla takes another device"),
    ("NEURON_EXTRACT_GRAPHS_ONLY", r"1|true", "graphs are written and not run"),
    ("NKI_SIMULATOR", r"1|true", "kernels are simulated on the host"),
    ("XLA_USE_BF16", r"1|true", "float32 becomes bfloat16, the recurrent state too"),
    ("XLA_DOWNCAST_BF16", r"1|true", "float32 becomes bfloat16, the recurrent state too"),
    ("NEURON_RT_STOCHASTIC_ROUNDING_EN", r"1|true", "results differ from run to run"),
    ("NEURON_PLATFORM_TARGET_OVERRIDE", r"(?!trn2$|gen3$).*", "graphs are for another device"),
    ("NKI_PRECISE_FP", r"0|false", "the simulator does not round"),
)
_SLOWER = (("NEURON_RT_INSPECT_ENABLE", r"1|true", "profiles are taken, which costs time"),)


def _environment(variables: Mapping[str, str], machine: Machine) -> Iterator[Finding]:
    said = set()
    for level, table in ((WRONG, _WRONG_VALUES), (NOTE, _SLOWER)):
        for name, pattern, text in table:
            if re.fullmatch(pattern, variables.get(name, ""), re.IGNORECASE) and name in variables:
                said.add(name)
                yield Finding(name, level, f"{variables[name]}: {text}", f"unset {name}")
    flags = variables.get("NEURON_CC_FLAGS", "")
    cast = re.search(r"--auto-cast[= ](?!none\b)(\S+)", flags)
    if cast:
        said.add("NEURON_CC_FLAGS")
        yield Finding("NEURON_CC_FLAGS", WRONG, f"--auto-cast {cast[1]} rounds what is float32",
                      'export NEURON_CC_FLAGS="$NEURON_CC_FLAGS --auto-cast=none"')  # fmt: skip
    yield from _grouping(variables, flags, machine)
    for name, value in variables.items():
        if name not in said:
            yield Finding(name, OK, value)


def _grouping(variables: Mapping[str, str], flags: str, machine: Machine) -> Iterator[Finding]:
    """Compares who says how many physical cores a logical one has; they must agree."""
    words = {
        "NEURON_LOGICAL_NC_CONFIG": variables.get("NEURON_LOGICAL_NC_CONFIG"),
        "NEURON_RT_VIRTUAL_CORE_SIZE": variables.get("NEURON_RT_VIRTUAL_CORE_SIZE"),
    }
    flag = re.search(r"(?:-lnc|--lnc|--logical-nc-config)[= ](\d)", flags)
    words["NEURON_CC_FLAGS"] = flag[1] if flag else None
    groupings = {str(device.grouping) for device in machine.devices if device.grouping}
    words["neuron-ls"] = groupings.pop() if len(groupings) == 1 else None
    told = {name: value for name, value in words.items() if value is not None}
    if len(set(told.values())) > 1:
        text = ", ".join(f"{name} says {value}" for name, value in told.items())
        yield Finding("logical cores", WRONG, f"{text}: compiler and runtime must agree",
                      "export NEURON_LOGICAL_NC_CONFIG=2   # and no other of these")  # fmt: skip
    elif told:
        yield Finding("logical cores", OK, f"of {next(iter(told.values()))} physical ones each")


def _profilers(machine: Machine) -> Finding:
    if machine.profilers:
        return Finding("profiler", OK, ", ".join(machine.profilers))
    return Finding("profiler", NOTE, "none was found: no profile will be taken",
                   "sudo apt-get install -y aws-neuronx-tools")  # fmt: skip


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part)
