"""What a machine has of Neuron, read and not judged: packages, driver, devices, environment.

Nothing here imports torch or a package of AWS's: what is broken must not keep one from hearing so.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import matrix

TOOLS = Path("opt/aws/neuron/bin")  # where AWS's packages put their programs, often not in PATH
_SYSFS = Path("sys/devices/virtual/neuron_device")
_SECONDS = 60  # that a program of AWS's may take


@dataclass(frozen=True)
class Package:
    """An installed distribution: its version, and how many files it has (None: it does not say)."""

    version: str
    files: int | None = None


@dataclass(frozen=True)
class Device:
    """A Neuron device (a chip), as `neuron-ls` tells.

    Attributes:
        cores: logical ones.
        memory: bytes; None where only the driver was asked.
        grouping: physical cores of a logical one; None where it does not say.
        processes: that use it now, by their ids.
    """

    cores: int
    memory: int | None = None
    grouping: int | None = None
    processes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Machine:
    """What was found.

    Attributes:
        python: its version.
        packages: those that `matrix.NAMES` has, by name.
        system: those that `matrix.SYSTEM` has, with their versions.
        nodes: names of the devices' files in /dev.
        driver: the loaded kernel module's version.
        devices: from neuron-ls, else from the driver.
        instance: the instance's type, where something tells it.
        listing: what became of neuron-ls: "" where it told, else why not.
        memory: the host's, bytes.
        free: bytes on the disk that compiled graphs go to; None: that is none of this machine.
        environment: of `matrix.VARIABLES` those that are set.
        profilers: programs that read profiles.
    """

    python: tuple[int, int]
    packages: Mapping[str, Package] = field(default_factory=dict)
    system: Mapping[str, str] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    driver: str | None = None
    devices: tuple[Device, ...] = ()
    instance: str | None = None
    listing: str = ""
    memory: int = 0
    free: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    profilers: tuple[str, ...] = ()


def read(
    root: Path = Path("/"),
    environment: Mapping[str, str] = os.environ,
    distributions: Callable[[str], Package | None] | None = None,
    call: Callable[[Sequence[str]], str] | None = None,
) -> Machine:
    """Reads a machine.

    Args:
        root: where its files stand.
        environment: its variables.
        distributions: tells of an installed distribution by name; importlib.metadata's, if None.
        call: runs a command and returns its standard output, OSError where it can't.
    """
    find = distributions or installed
    run = call or _call
    packages = {name: package for name in matrix.NAMES if (package := find(name)) is not None}
    devices, instance, listing = _listed(root, run)
    if not devices:
        devices, told = _of_driver(root / _SYSFS)
        instance = instance or told
    return Machine(
        python=sys.version_info[:2],
        packages=packages,
        system=_system_packages(run),
        nodes=tuple(sorted(path.name for path in (root / "dev").glob("neuron[0-9]*"))),
        driver=_text(root / "sys/module/neuron/version"),
        devices=devices,
        instance=instance,
        listing=listing,
        memory=_host_memory(root),
        free=_free(root, environment),
        environment={n: environment[n] for n in matrix.VARIABLES if n in environment},
        profilers=tuple(
            name for name in ("neuron-explorer", "neuron-profile") if _program(root, name)
        ),
    )


def installed(name: str) -> Package | None:
    """Returns an installed distribution, or None."""
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    files = found.files
    return Package(found.version, None if files is None else len(files))


def parse_listing(text: str) -> tuple[tuple[Device, ...], str | None]:
    """Reads what `neuron-ls --json-output` prints: devices, and the instance's type if it tells.

    Raises:
        ValueError: it is not that.
    """
    listed = json.loads(text)
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ValueError("no list of devices")
    devices = tuple(map(_device, listed))
    instances = [entry["instance_type"] for entry in listed if entry.get("instance_type")]
    return devices, instances[0] if instances else None


def _device(entry: Mapping[str, Any]) -> Device:
    if not isinstance(entry.get("nc_count"), int):
        raise ValueError("a device without nc_count")
    processes = entry.get("neuron_processes") or ()
    return Device(
        cores=entry["nc_count"],
        memory=entry.get("memory_size"),
        grouping=entry.get("logical_neuroncore_config"),
        processes=tuple(process["pid"] for process in processes),
    )


def _listed(
    root: Path, run: Callable[[Sequence[str]], str]
) -> tuple[tuple[Device, ...], str | None, str]:
    """Asks neuron-ls: devices, the instance's type, and why it did not tell."""
    program = _program(root, "neuron-ls")
    if program is None:
        return (), None, "neuron-ls is not installed"
    try:
        devices, instance = parse_listing(run((program, "--json-output")))
    except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError) as error:
        return (), None, f"neuron-ls did not list devices: {error}"
    return devices, instance, ""


def _of_driver(folder: Path) -> tuple[tuple[Device, ...], str | None]:
    """Reads devices from the driver's files, whose places differ with its version."""
    found, instance = [], None
    for device in sorted(folder.glob("neuron[0-9]*")):
        cores = _text(device / "core_count")
        found.append(Device(int(cores) if cores and cores.isdecimal() else 0))
        instance = instance or _text(device / "info/architecture/instance_type")
    return tuple(found), instance


def _system_packages(run: Callable[[Sequence[str]], str]) -> dict[str, str]:
    """Returns versions of AWS's packages of the operating system, by dpkg or rpm."""
    for command in (
        ("dpkg-query", "-W", "-f", "${Package} ${Version}\n", "aws-neuronx-*"),
        ("rpm", "-qa", "--qf", "%{NAME} %{VERSION}\n", "aws-neuronx-*"),
    ):
        try:
            lines = run(command).splitlines()
        except (OSError, subprocess.SubprocessError):
            continue
        pairs = [line.split() for line in lines]
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[0] in matrix.SYSTEM}
    return {}


def _program(root: Path, name: str) -> str | None:
    beside = root / TOOLS / name
    return str(beside) if beside.exists() else shutil.which(name) if root == Path("/") else None


def _host_memory(root: Path) -> int:
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def cache_of(environment: Mapping[str, str]) -> str:
    """Returns where compiled graphs go: a directory, or an address of S3."""
    for word in environment.get("NEURON_CC_FLAGS", "").split():
        if word.startswith("--cache_dir="):
            return word.partition("=")[2]
    return environment.get("NEURON_COMPILE_CACHE_URL", matrix.CACHE)


def _free(root: Path, environment: Mapping[str, str]) -> int | None:
    cache = cache_of(environment)
    if "://" in cache:
        return None
    place = root / cache.lstrip("/")
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def _text(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None


def _call(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_SECONDS, check=True, env=os.environ
    )
    return done.stdout


def describe(machine: Machine) -> dict[str, Any]:
    """Returns what was found as JSON has it."""
    cores = sum(device.cores for device in machine.devices)
    sizes = [device.memory for device in machine.devices if device.memory]
    return {
        "python": ".".join(map(str, machine.python)),
        "system": platform.platform(),
        "packages": {name: package.version for name, package in machine.packages.items()},
        "system_packages": dict(machine.system),
        "driver": machine.driver,
        "instance": machine.instance,
        "devices": len(machine.devices),
        "logical_cores": cores,
        "device_memory": sum(sizes),
        "host_memory": machine.memory,
        "environment": dict(machine.environment),
        "profilers": list(machine.profilers),
    }


def device_memory_used(root: Path = Path("/")) -> int | None:
    """Returns the bytes that are in use on all devices, as the driver counts; None if it does not.

    The place of the counter is that of drivers before 2.31.
    """
    counters = (root / _SYSFS).glob("neuron*/neuron_core*/stats/memory_usage/device_mem/total")
    values = [_text(counter) for counter in counters]
    return sum(int(value) for value in values if value) if values else None
