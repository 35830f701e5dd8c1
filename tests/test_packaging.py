"""The pythons that are supported are named alike everywhere, and `make` takes the newest of them that works."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NEWEST_FIRST = [f"3.{minor}" for minor in (14, 13, 12, 11)]
MAKE = shutil.which("make")

# Stand-ins for interpreters. A pyenv shim without a Python of that version behind it:
SHIM = (
    "#!/bin/sh\necho \"pyenv: ${0##*/}: command not found\"\necho 'It exists in these Python versions:' >&2\nexit 127\n"
)
# Debian's python3.X without python3.X-venv, and a Python that says it is of another version:
PRETEND = f"#!/bin/sh\nexec {sys.executable} -c 'import sys; {{}}; exec(sys.argv[1])' \"$2\"\n"
NO_VENV = PRETEND.format('sys.modules["ensurepip"] = None')


def of_version(version: str) -> str:
    major, minor = version.split(".")
    return PRETEND.format(f'sys.version_info = ({major}, {minor}, 0, "final", 0)')


def make(folder: Path, fakes: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`make` with the project's Makefile where these fakes are all the Pythons that there are."""
    assert MAKE is not None
    programs = folder / "programs"
    programs.mkdir()
    for name, script in fakes.items():
        (programs / name).write_text(script, encoding="utf-8")
        (programs / name).chmod(0o755)
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTHON", "TORCH_"))
    }
    environment["PATH"] = str(programs)
    return subprocess.run(
        [MAKE, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def chosen(folder: Path, fakes: dict[str, str], *arguments: str) -> str:
    """The Python that `make install` would make the environment with; nothing is installed."""
    found = re.search(r"^(\S*) ?-m venv ", make(folder, fakes, "-n", "install", *arguments).stdout, re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("newest", range(len(NEWEST_FIRST)), ids=NEWEST_FIRST)
def test_make_takes_the_newest(newest: int, tmp_path: Path) -> None:
    fakes = {f"python{version}": of_version(version) for version in NEWEST_FIRST[newest:]}
    fakes["python3"] = of_version(NEWEST_FIRST[-1])
    assert chosen(tmp_path, fakes) == f"python{NEWEST_FIRST[newest]}"


@pytest.mark.parametrize("broken", [SHIM, NO_VENV, of_version("3.9")], ids=["shim", "no venv", "another version"])
def test_make_passes_over_what_does_not_work(broken: str, tmp_path: Path) -> None:
    fakes = {
        "python3.14": broken,
        "python3.13": broken,
        "python3.12": of_version("3.12"),
        "python3.11": of_version("3.11"),
    }
    assert chosen(tmp_path, fakes) == "python3.12"


def test_make_takes_a_python3_that_is_supported(tmp_path: Path) -> None:
    assert chosen(tmp_path, {"python3.14": SHIM, "python3": of_version("3.13")}) == "python3"


def test_make_takes_the_python_that_it_is_told(tmp_path: Path) -> None:
    fakes = {"python3.14": of_version("3.14"), "mine": of_version("3.11")}
    assert chosen(tmp_path, fakes, "PYTHON=mine") == "mine"


@pytest.mark.parametrize("version", ["3.10", "3.15"])
@pytest.mark.parametrize("arguments", [(), ("PYTHON=python3",)], ids=["looked for", "told"])
def test_make_says_which_pythons_will_do(version: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = make(tmp_path, {"python3.14": SHIM, "python3": of_version(version)}, "install", *arguments)
    assert done.returncode == 2
    assert "Python 3.11 to 3.14" in done.stderr
    assert "make PYTHON=/path/to/python3.14 install" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_an_environment_of_another_version_is_made_anew(tmp_path: Path) -> None:
    record = '#!/bin/sh\ncase "$1" in -c) exec REAL "$@";; esac\necho "$@" >> ran\nexit 1\n'.replace(
        "REAL", sys.executable
    )
    same = tmp_path / ".venv" / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    same.parent.mkdir(parents=True)
    (same.parent / "python3.1").touch()
    make(tmp_path, {"python3": record}, "install", "PYTHON=python3")
    assert (tmp_path / "ran").read_text(encoding="utf-8") == "-m venv --clear .venv\n"
    same.touch()
    shutil.rmtree(tmp_path / "programs")
    make(tmp_path, {"python3": record}, "install", "PYTHON=python3")
    assert (tmp_path / "ran").read_text(encoding="utf-8").splitlines()[1:] == ["-m venv .venv"]


def test_torch_comes_from_the_index_that_is_named_and_all_else_does_not(tmp_path: Path) -> None:
    fakes = {"python3.14": of_version("3.14")}
    lines = make(tmp_path, fakes, "-n", "install", "TORCH_INDEX=https://example.org/cpu").stdout.splitlines()
    (of_index,) = [line for line in lines if "example.org" in line]
    assert of_index.endswith(" --no-deps --index-url https://example.org/cpu torch")


def test_the_supported_pythons_are_named_alike() -> None:
    requires = SpecifierSet(PROJECT["project"]["requires-python"])
    assert [f"3.{minor}" for minor in range(20, 5, -1) if requires.contains(f"3.{minor}")] == NEWEST_FIRST
    start = "Programming Language :: Python :: "
    classifiers = [line.removeprefix(start) for line in PROJECT["project"]["classifiers"] if line.startswith(start)]
    assert sorted(classifiers, key=Version, reverse=True) == NEWEST_FIRST
    (listed,) = re.findall(r"^PYTHONS := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed.split() == NEWEST_FIRST
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:24]
    assert re.findall(r"Python (3\.\d+) to (3\.\d+)", "\n".join(first_screen)) == [(NEWEST_FIRST[-1], NEWEST_FIRST[0])]
    # What is checked for the oldest holds for all.
    assert PROJECT["tool"]["mypy"]["python_version"] == NEWEST_FIRST[-1]
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + NEWEST_FIRST[-1].replace(".", "")


def test_the_constraints_name_all_that_is_installed() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(Requirement(line).name) for line in lines if line and not line.startswith("#")}
    project = PROJECT["project"]
    waiting = [Requirement(line) for line in (*project["dependencies"], *project["optional-dependencies"]["dev"])]
    found: set[str] = set()
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        if name in found:
            continue
        found.add(name)
        # PyTorch's builds need different things: CUDA's packages or none.
        needs = [] if name == "torch" else [Requirement(line) for line in metadata.requires(name) or []]
        extras = {"", *need.extras}
        waiting += [
            one for one in needs if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras)
        ]
    assert len(found) > len(project["dependencies"])
    assert found <= pinned
