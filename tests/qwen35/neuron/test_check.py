"""What a machine lacks: judged on machines that are made up, and read from folders that are."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from qwen35.commands.cli import main
from qwen35.neuron import matrix
from qwen35.neuron.check import NOTE, OK, WRONG, check, ready, render, report, route_of
from qwen35.neuron.machine import Device, Machine, Package, cache_of, parse_listing, read

ROOT = Path(__file__).resolve().parents[3]
CHIP = Device(cores=4, memory=96 * 2**30, grouping=2)


def machine(route: str = "xla", **changes) -> Machine:
    """A machine on which all is as the matrix has it."""
    chosen = matrix.ROUTES[route]
    packages = {r.name: Package(f"{r.version}+0a1b2c3d", 900) for r in chosen.packages}
    system = {name: f"{least}.0.0-deb" for name, least in chosen.system.items()}
    whole = Machine(
        python=chosen.python[1],
        packages=packages,
        system=system,
        nodes=("neuron0",),
        driver=system["aws-neuronx-dkms"],
        devices=(CHIP,),
        instance="trn2.3xlarge",
        memory=int(128e9),
        free=int(400e9),
        profilers=("neuron-explorer",),
    )
    return dataclasses.replace(whole, **changes)


def of(found: Machine, subject: str, route: str | None = None):
    """The finding of a subject, of which there has to be one."""
    [finding] = [finding for finding in check(found, route) if finding.subject == subject]
    return finding


def test_a_machine_as_the_matrix_has_it_is_ready():
    findings = check(machine())
    assert ready(findings) and {finding.level for finding in findings} == {OK}
    text = render(findings, "xla")
    assert text.endswith("\nready") and ">" not in text
    assert "1, 4 logical cores, trn2.3xlarge" in text and "96 GiB, 24 a logical core" in text


def test_an_empty_machine_is_told_everything_that_is_missing():
    findings = check(Machine(python=(3, 12), memory=int(24e9), free=int(9e9)))
    assert not ready(findings)
    wrong = {finding.subject for finding in findings if finding.level == WRONG}
    names = {required.name for required in matrix.ROUTES["xla"].packages}
    assert wrong == {*names, *matrix.ROUTES["xla"].system, "driver", "devices"}
    assert all(finding.mend for finding in findings if finding.level == WRONG)


def test_the_public_indexs_placeholders_are_not_taken_for_the_packages():
    """By their versions, and by what they hold where a later one has another version."""
    for name, versions in matrix.PLACEHOLDERS.items():
        for package in (*(Package(v) for v in versions), Package("2.9.0.2.15.32035", 4)):
            packages = {**machine().packages, name: package}
            finding = of(machine(packages=packages), name)
            assert finding.level == WRONG and "placeholder" in finding.text
            assert finding.mend.startswith(f"python -m pip uninstall --yes {name} && ")


@pytest.mark.parametrize(
    ("name", "version", "level", "said"),
    [
        ("torch", "2.9.0", OK, "2.9.0; the matrix has 2.9.1"),
        ("torch", "2.10.0", WRONG, "2.10.0; 2.9.1 is needed"),
        ("torch-xla", "2.10.0", WRONG, "2.9.0 is needed"),
        ("torch-neuronx", "2.9.0.2.13.24727", NOTE, "the matrix has 2.9.0.2.15.32035"),
        ("torch-neuronx", "2.14.3.0", WRONG, "other series of this name are another backend"),
        ("neuronx-cc", "2.28.7631.0", WRONG, "the compiler refuses kernels of another nki"),
        ("nki", "0.7.0", WRONG, "0.5.0 is needed"),
        ("libneuronxla", "3.0.3854.0", WRONG, "2.2.17544.0 is needed"),
    ],
)
def test_other_versions(name, version, level, said):
    packages = {**machine().packages, name: Package(version, 900)}
    finding = of(machine(packages=packages), name, "xla")
    assert finding.level == level and said in finding.text
    assert bool(finding.mend) == (level == WRONG)


def test_the_route_is_that_of_the_installed_package():
    assert route_of(machine()) == "xla" and route_of(Machine(python=(3, 12))) == "xla"
    native = machine("native")
    assert route_of(native) == "native"
    # Whole in itself, and still nothing that this package runs on.
    wrong = [finding.subject for finding in check(native) if finding.level == WRONG]
    assert wrong == ["route"]
    assert "torch 2.9" in of(native, "route").text


@pytest.mark.parametrize(
    ("changes", "subject", "level", "said"),
    [
        ({"python": (3, 10)}, "python", WRONG, "3.10; 3.11 to 3.13 is needed"),
        ({"driver": None}, "driver", WRONG, "is not loaded"),
        ({"driver": "2.27.4.0"}, "driver", WRONG, "2.27.4.0 is loaded, and aws-neuronx-dkms is"),
        ({"system": {}}, "aws-neuronx-runtime-lib", WRONG, "is not installed; 2.33 or newer"),
        ({"system": {"aws-neuronx-runtime-lib": "2.9.1"}}, "aws-neuronx-runtime-lib", WRONG,
         "2.9.1; 2.33 or newer"),
        ({"devices": (), "listing": "neuron-ls is not installed"}, "devices", WRONG,
         "none was found; neuron-ls is not installed"),
        ({"instance": "trn1.32xlarge"}, "devices", NOTE, "are for Trainium2"),
        ({"nodes": ()}, "device files", WRONG, "no /dev/neuron0"),
        ({"devices": (dataclasses.replace(CHIP, processes=(77, 78)),)}, "device use", WRONG,
         "77,78"),
        ({"memory": int(32e9)}, "host memory", NOTE, "32 GB"),
        ({"free": int(8e9)}, "compile cache", NOTE, "8 GB are free"),
        ({"free": None, "environment": {"NEURON_COMPILE_CACHE_URL": "s3://b"}}, "compile cache",
         OK, "s3://b"),
        ({"profilers": ()}, "profiler", NOTE, "none was found"),
    ],
)  # fmt: skip
def test_each_thing_that_can_be_wrong(changes, subject, level, said):
    finding = of(machine(**changes), subject)
    assert finding.level == level and said in finding.text


@pytest.mark.parametrize(
    ("name", "value", "level"),
    [
        ("PJRT_DEVICE", "CPU", WRONG),
        ("PJRT_DEVICE", "NEURON", OK),
        ("NEURON_EXTRACT_GRAPHS_ONLY", "1", WRONG),
        ("NKI_SIMULATOR", "1", WRONG),
        ("NKI_SIMULATOR", "0", OK),
        ("XLA_USE_BF16", "1", WRONG),
        ("NEURON_RT_STOCHASTIC_ROUNDING_EN", "1", WRONG),
        ("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1", WRONG),
        ("NEURON_PLATFORM_TARGET_OVERRIDE", "trn2", OK),
        ("NEURON_RT_INSPECT_ENABLE", "1", NOTE),
        ("NEURON_CC_FLAGS", "--auto-cast=matmult -O1", WRONG),
        ("NEURON_CC_FLAGS", "--auto-cast=none -O1", OK),
        ("NEURON_RT_VISIBLE_CORES", "0-3", OK),
    ],
)
def test_variables_that_change_what_runs(name, value, level):
    finding = of(machine(environment={name: value}), name)
    assert finding.level == level and value.split()[0].rpartition("=")[2] in finding.text


@pytest.mark.parametrize(
    ("environment", "level"),
    [
        ({}, OK),
        ({"NEURON_LOGICAL_NC_CONFIG": "2", "NEURON_CC_FLAGS": "--lnc=2"}, OK),
        ({"NEURON_LOGICAL_NC_CONFIG": "1"}, WRONG),  # neuron-ls says 2
        ({"NEURON_CC_FLAGS": "-O1 -lnc 1"}, WRONG),
        ({"NEURON_RT_VIRTUAL_CORE_SIZE": "1"}, WRONG),
    ],
)
def test_who_says_how_many_cores_make_a_logical_one_has_to_agree(environment, level):
    assert of(machine(environment=environment), "logical cores").level == level


# Reading.

LISTED = [
    {
        "instance_type": "trn2.3xlarge",
        "neuron_device": 0,
        "bdf": "0000:33:00.0",
        "connected_to": None,
        "nc_count": 4,
        "logical_neuroncore_config": 2,
        "memory_size": 103079215104,
        "neuron_processes": [{"pid": 4711, "command": "python", "neuron_runtime_version": "2.0"}],
    }
]


def test_what_neuron_ls_prints():
    """In the form of AWS's documentation of SDK 2.28; older ones leave some of it out."""
    devices, instance = parse_listing(json.dumps(LISTED))
    assert devices == (Device(4, 103079215104, 2, (4711,)),) and instance == "trn2.3xlarge"
    old = [
        {"neuron_device": 0, "nc_count": 2, "memory_size": 34359738368, "neuron_processes": None}
    ]
    assert parse_listing(json.dumps(old)) == ((Device(2, 34359738368),), None)
    for text in ("", "{}", "[1]", '[{"neuron_device": 0}]'):
        with pytest.raises(ValueError):
            parse_listing(text)


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


SYSFS = "sys/devices/virtual/neuron_device/neuron"
FILES = {
    "dev/neuron0": "",
    "dev/neuron1": "",
    "dev/neuron_monitor": "",  # no device
    "sys/module/neuron/version": "2.29.0.0\n",
    f"{SYSFS}0/core_count": "8\n",
    f"{SYSFS}1/core_count": "8\n",
    f"{SYSFS}0/info/architecture/instance_type": "Trn2\n",
    "proc/meminfo": "MemFree: 1 kB\nMemTotal:       1024000 kB\n",
}


def answer(answers):
    """A `call` that has output for programs by name, and no other program."""

    def call(command):
        name = Path(command[0]).name
        if name not in answers:
            raise FileNotFoundError(name)
        if isinstance(answers[name], Exception):
            raise answers[name]
        return answers[name]

    return call


def test_a_machine_is_read_from_its_files_and_programs(tmp_path):
    tools = {f"opt/aws/neuron/bin/{name}": "" for name in ("neuron-ls", "neuron-explorer")}
    root = plant(tmp_path, {**FILES, **tools})
    answers = {
        "neuron-ls": json.dumps(LISTED),
        "dpkg-query": "aws-neuronx-dkms 2.29.0.0\naws-neuronx-oci-hook 2.1\n",
    }
    found = read(
        root,
        {"PJRT_DEVICE": "NEURON", "HOME": "/root"},
        {"nki": Package("0.5.0", 300)}.get,
        answer(answers),
    )
    assert found.packages == {"nki": Package("0.5.0", 300)}
    assert found.nodes == ("neuron0", "neuron1") and found.driver == "2.29.0.0"
    assert found.devices[0].processes == (4711,) and found.instance == "trn2.3xlarge"
    assert found.listing == "" and found.system == {"aws-neuronx-dkms": "2.29.0.0"}
    assert found.memory == 1024000 * 1024 and found.free > 0
    assert found.environment == {"PJRT_DEVICE": "NEURON"}
    assert found.profilers == ("neuron-explorer",)


@pytest.mark.parametrize(
    "listed", [None, "not JSON", subprocess.TimeoutExpired("neuron-ls", 60), OSError("denied")]
)
def test_without_neuron_ls_the_driver_tells(listed, tmp_path):
    files = FILES if listed is None else {**FILES, "opt/aws/neuron/bin/neuron-ls": ""}
    answers = {} if listed is None else {"neuron-ls": listed}
    found = read(plant(tmp_path, files), {}, {}.get, answer(answers))
    assert found.devices == (Device(8), Device(8)) and found.instance == "Trn2"
    assert found.listing.startswith("neuron-ls ")
    assert of(found, "devices").level == NOTE


def test_packages_of_amazon_linux(tmp_path):
    answers = {"rpm": "aws-neuronx-runtime-lib 2.33.10.0\n"}
    found = read(tmp_path, {}, {}.get, answer(answers))
    assert found.system == {"aws-neuronx-runtime-lib": "2.33.10.0"} and found.devices == ()


def test_where_compiled_graphs_go():
    assert cache_of({}) == "/var/tmp/neuron-compile-cache"
    assert cache_of({"NEURON_COMPILE_CACHE_URL": "/big"}) == "/big"
    flags = {"NEURON_COMPILE_CACHE_URL": "/big", "NEURON_CC_FLAGS": "-O1 --cache_dir=/other"}
    assert cache_of(flags) == "/other"  # by AWS's documentation the flag wins


# The command.


def test_here_it_says_what_is_missing(capsys):
    assert main(["neuron", "check"]) == 1
    out, error = capsys.readouterr()
    assert error == "" and "torch-neuronx" in out and "is not installed" in out
    assert re.search(r"\nnot ready: \d+ of \d+ findings have to be mended\n$", out)


def test_json_is_one_object(capsys):
    assert main(["neuron", "check", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["ready"] is False and result["route"] == "xla"
    assert {"subject", "level", "text", "mend"} == set(result["findings"][0])
    assert result["machine"]["packages"]["torch"].startswith("2.9")


def test_a_ready_machine_ends_with_exit_code_0(monkeypatch, capsys):
    monkeypatch.setattr("qwen35.neuron.machine.read", machine)
    assert main(["neuron", "check"]) == 0
    assert capsys.readouterr().out.endswith("\nready\n")


def test_a_report_is_plain_values():
    found = machine()
    result = report(found, check(found), "xla")
    assert json.loads(json.dumps(result)) == result
    assert result["machine"]["logical_cores"] == 4


def test_the_extra_has_the_versions_of_the_matrix():
    """Exact ones, which the public index lacks: an install from there alone fails."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = project["optional-dependencies"]["neuron"]
    versions = {required.name: required.version for required in matrix.ROUTES["xla"].packages}
    assert extra == [f"{name}=={versions[name]}" for name in ("torch-neuronx", "neuronx-cc", "nki")]
    placeholders = {f"{name}=={v}" for name, old in matrix.PLACEHOLDERS.items() for v in old}
    assert not placeholders & set(extra)


def test_the_page_has_the_lines_that_the_command_gives():
    page = (ROOT / "docs" / "neuron.md").read_text(encoding="utf-8")
    for route in matrix.ROUTES.values():
        assert route.install in page.replace(" \\\n    ", " ")
        assert all(f"{name}={least}" in page for name, least in route.system.items())
