"""Bugs put in on purpose: `python -m tests.mutants [NAME …]`; without a name, all of `mutants.toml`.

Copies the project to a temporary folder, and there puts in one bug at a time and runs the tests that it names: they
must fail. First the same tests must pass without any. Prints one line for each bug; exit code 1 where one survived.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.listing import ROOT, Mutant, read_mutants

# What a test may read. What is large and never written to is linked.
COPIED = ("batchcap", "tests", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile")
LINKED = ("tests/data", "tests/fuzz/found", "jobs", "sample_data", "benchmarks", "training")
WHERE = "import batchcap; print(batchcap.__file__)"
PASSED, FAILED = 0, 1  # of pytest's exit codes
SHOWN_LINES = 15


class NotUsableError(Exception):
    """The tests say nothing of the bugs: they fail without one, or do not run."""


def copy_project(copy: Path) -> None:
    """Make the copy that the bugs are put into."""
    linked = {ROOT / name for name in LINKED}

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name == "__pycache__" or Path(folder, name) in linked]

    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=left_out)
        else:
            shutil.copy(ROOT / name, copy / name)
    for name in LINKED:
        (copy / name).symlink_to(ROOT / name)


def run_python(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python so that it and its children import the copy."""
    # Without compiled files: one of a bug's must not be taken for the next one's.
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    # A test that fails may print a name that is no text.
    return subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, errors="backslashreplace", check=False
    )


def run_tests(copy: Path, tests: list[str]) -> tuple[int, str]:
    """Pytest's exit code and what it printed."""
    done = run_python(copy, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests)
    return done.returncode, done.stdout + done.stderr


def require_usable(copy: Path, tests: list[str]) -> None:
    """See that the copy is what is tested, and that the tests pass without a bug.

    Raises:
        NotUsableError: one of both is not so.
    """
    where = run_python(copy, "-P", "-c", WHERE).stdout.strip()
    if where != str(copy / "batchcap" / "__init__.py"):
        raise NotUsableError(f"{where} would be tested, not the copy")
    code, output = run_tests(copy, tests)
    if code != PASSED:
        raise NotUsableError(f"the tests do not pass without a bug:\n{_end_of(output)}")


def killer(copy: Path, mutant: Mutant) -> str | None:
    """The test that fails with a bug; None where none does.

    Raises:
        NotUsableError: pytest did not come to the tests.
    """
    path = copy / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(mutant.applied(text), encoding="utf-8")
    try:
        code, output = run_tests(copy, list(mutant.tests))
    finally:
        path.write_text(text, encoding="utf-8")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+::\S+)", output, re.MULTILINE)
    if code == FAILED and failed:
        return failed[1]
    if code != PASSED:
        raise NotUsableError(f"{mutant.name}: pytest ended with {code}, and no test failed:\n{_end_of(output)}")
    return None


def _end_of(output: str) -> str:
    return "\n".join(output.splitlines()[-SHOWN_LINES:])


def main() -> None:
    """Try the bugs that are asked for."""
    every = {mutant.name: mutant for mutant in read_mutants()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(every))
    names = parser.parse_args().names or list(every)
    if unknown := [name for name in names if name not in every]:
        parser.error(f"there is no {', '.join(unknown)}")
    mutants = [every[name] for name in names]
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    started_s, survived = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve()
        copy_project(copy)
        print(f"{len(tests)} tests or files without a bug …", flush=True)
        try:
            require_usable(copy, tests)
            for number, mutant in enumerate(mutants, 1):
                by = killer(copy, mutant)
                survived += by is None
                said = f"killed by {by}" if by else f"SURVIVED: {mutant.why}"
                print(f"[{number}/{len(mutants)}] {mutant.name}: {said}", flush=True)
        except NotUsableError as error:
            sys.exit(str(error))
    print(f"{len(mutants)} bugs, {survived} survived, {time.perf_counter() - started_s:.0f} s")
    sys.exit(bool(survived))


if __name__ == "__main__":
    main()
