"""Each kind of install gives the whole package, wherever its user stands.

The installs go into environments of their own, without the network and without copying the 3 GB
that torch takes: pip gets `--no-deps --no-build-isolation`, and what the package needs is lent by
a folder of links to this interpreter's packages, all but this project. What is tested, which files
of the project go where and which of them Python finds first, is decided by the same pip, setuptools
and import system as after a download. That the requirements can be had at all is seen by
scripts/test, which installs them on a clean machine.

The clone's folder has the package's name, the worst that it can have: beside it, Python may take
the folder for the package.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import qwen35

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("plain", "editable", "wheel", "sdist")
PLACES = ("the clone's root", "the folder that holds the clone", "elsewhere")
PIP = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet")
# What an install must not take from the caller: paths to packages, and pip's choice of environment.
PRIVATE = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "VIRTUAL_ENV")

IMPORTS = """
import importlib.metadata, json, pkgutil
import qwen35, qwen35.kernels.emulator, qwen35.sharding
modules = pkgutil.walk_packages(qwen35.__path__, "qwen35.")
print(json.dumps({
    "files": [qwen35.__file__, qwen35.kernels.emulator.__file__, qwen35.sharding.__file__],
    "modules": sorted(module.name for module in modules),
    "version": importlib.metadata.version("qwen35"),
}))
"""
BUILDING = ("pyproject.toml", "setup.cfg", "setup.py")
SOME_TESTS = (
    "tests/kernels/test_portable.py",
    "tests/qwen35/model/test_config.py",
    "tests/sharding/test_layout.py",
)


def run(*command: str | Path, cwd: Path) -> str:
    """The standard output of a command that must succeed."""
    environment = {name: value for name, value in os.environ.items() if name not in PRIVATE}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def copy_clone(holder: Path) -> Path:
    """HOLDER/qwen35 with what git would put there: no build, no install, links as links."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if os.path.lexists(ROOT / name):  # removed, and not yet committed
            target = holder / "qwen35" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
    return holder / "qwen35"


def build_wheel(source: Path, into: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", *PIP, "-w", into, source, cwd=into.parent)
    [wheel] = into.glob("*.whl")
    return wheel


def build_sdist(clone: Path, into: Path) -> Path:
    into.mkdir()
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, into, cwd=clone)
    [sdist] = into.glob("*.tar.gz")
    return sdist


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def expected_files(clone: Path) -> dict[str, bytes]:
    """The package's files by their names in a wheel, read through the clone's links."""
    found = {}
    for folder, _, names in os.walk(clone / "qwen35", followlinks=True):
        for path in (Path(folder, name) for name in names):
            if path.suffix in (".py", ".typed"):
                found[path.relative_to(clone).as_posix()] = path.read_bytes()
    return found


def make_environment(directory: Path, packages: str = "*") -> Path:
    """The python of a new environment with links to this interpreter's packages, but not ours."""
    venv.create(directory, symlinks=True)
    # By this name hypothesis knows that they are not the project's: it would parse all of torch.
    lent = directory / "lent" / "site-packages"
    lent.mkdir(parents=True)
    for site in [path for path in sys.path if path.endswith("-packages")]:
        for entry in Path(site).glob(packages):
            ours = entry.name.startswith(("qwen35", "__editable__")) or entry.suffix == ".pth"
            if not ours and not (lent / entry.name).exists():
                (lent / entry.name).symlink_to(entry)
    python = directory / "bin/python"
    site = run(python, "-c", "import sysconfig as s; print(s.get_path('purelib'))", cwd=directory)
    (Path(site.strip()) / "lent.pth").write_text(f"{lent}\n")
    return python


@pytest.fixture(scope="module", params=KINDS)
def installed(request, tmp_path_factory) -> tuple[str, Path, Path]:
    """The kind of install, the environment's folder of programs, and the clone."""
    directory = tmp_path_factory.mktemp(request.param)
    clone = copy_clone(directory / "holder")
    python = make_environment(directory / "environment")
    if request.param == "wheel":
        what = [build_wheel(clone, directory / "built")]
    elif request.param == "sdist":
        what = [build_sdist(clone, directory / "built")]
    else:
        what = ["--editable", "."] if request.param == "editable" else ["."]
    run(python, "-m", "pip", "install", *PIP, *what, cwd=clone)
    return request.param, python.parent, clone


@pytest.mark.parametrize("place", PLACES)
def test_the_package_works_wherever_one_stands(installed, place, tmp_path):
    kind, programs, clone = installed
    cwd = dict(zip(PLACES, (clone, clone.parent, tmp_path), strict=True))[place]
    python = programs / "python"
    found = json.loads(run(python, "-c", IMPORTS, cwd=cwd))
    # The clone's own files where they come first, else those that were installed.
    ours = kind == "editable" or place == PLACES[0]
    home = clone if ours else programs.parent
    assert all(Path(file).is_relative_to(home) for file in found["files"]), found["files"]
    names = {name.removesuffix(".py") for name in expected_files(clone) if name.endswith(".py")}
    modules = {name.removesuffix("/__init__").replace("/", ".") for name in names}
    assert set(found["modules"]) == modules - {"qwen35"}
    assert found["version"] == qwen35.__version__
    assert run(python, "-m", "qwen35", "--version", cwd=cwd) == f"qwen35 {qwen35.__version__}\n"


def test_the_readmes_command_and_pytest_run_in_the_root(installed):
    _, programs, clone = installed
    prompt = ("--prompt", "The capital of France is", "--max-new-tokens", "2", "--device", "cpu")
    assert run(programs / "qwen35", "generate", "--model", "demo", *prompt, cwd=clone) == " Par\n"
    collect = ("-m", "pytest", "--collect-only", "-q", *SOME_TESTS)
    assert "tests collected" in run(programs / "python", *collect, cwd=clone)


def test_wheel_and_sdist_hold_the_packages_and_nothing_else(tmp_path):
    clone = copy_clone(tmp_path)
    wheel = contents(build_wheel(clone, tmp_path / "wheels"))
    package = {name: data for name, data in wheel.items() if ".dist-info/" not in name}
    assert package == expected_files(clone)

    sdist = build_sdist(clone, tmp_path / "sdists")
    with tarfile.open(sdist) as archive:
        members = [member for member in archive if not member.isdir()]
    assert all(member.isreg() for member in members)  # a link would point out of the archive
    names = {member.name.partition("/")[2] for member in members}
    ours = {name for name in names if ".egg-info/" not in name}
    assert ours == {*package, "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", *BUILDING}
    assert contents(build_wheel(sdist, tmp_path / "from-sdist")) == wheel


def test_a_module_that_has_gone_does_not_come_back(tmp_path):
    clone = copy_clone(tmp_path)
    (clone / "qwen35/gone.py").touch()
    assert "qwen35/gone.py" in contents(build_wheel(clone, tmp_path / "before"))
    (clone / "qwen35/gone.py").unlink()
    assert "qwen35/gone.py" not in contents(build_wheel(clone, tmp_path / "after"))


def test_the_scripts_notice_an_install_that_is_not_theirs(tmp_path, monkeypatch):
    """Without torch in the environment, which is what its first run meets on a clean machine."""
    clone = copy_clone(tmp_path)
    python = make_environment(clone / ".venv", packages="[ps_]*")  # pip, setuptools
    # pip's settings, by which prepare_environment goes; the last one means: no isolated build.
    for name, value in (("NO_DEPS", "1"), ("NO_INDEX", "1"), ("NO_BUILD_ISOLATION", "0")):
        monkeypatch.setenv(f"PIP_{name}", value)

    def prepare() -> str:
        command = 'source scripts/environment.sh; prepare_environment demo "" 2>&1'
        return run("bash", "-euc", command, cwd=clone)

    def origin() -> Path:
        code = "import importlib.util as u; print(u.find_spec('qwen35').origin)"
        return Path(run(python, "-c", code, cwd=tmp_path).strip())

    first = prepare()
    assert "3 GB" in first and "Successfully installed qwen35" in first  # not silent meanwhile
    assert origin() == clone / "qwen35/__init__.py"
    assert prepare() == ""

    run(python, "-m", "pip", "install", ".", cwd=clone)
    assert origin() != clone / "qwen35/__init__.py"
    assert "is a copy, or another folder's" in prepare()
    assert origin() == clone / "qwen35/__init__.py"
    assert prepare() == ""
