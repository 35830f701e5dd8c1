"""What tries the mutants tells a test that fails from tests that pass, and from those that do not run at all."""

from pathlib import Path

import pytest

from tests.mutants.__main__ import NotUsableError, copy_project, killer, require_usable
from tests.mutants.listing import LIST, ROOT, Mutant

CODE = "def double(number: int) -> int:\n    return 2 * number\n"
TESTS = "from code_of_it import double\n\n\ndef test_double():\n    assert double(2) == 4\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "code_of_it.py").write_text(CODE)
    (tmp_path / "test_it.py").write_text(TESTS)
    return tmp_path


def mutant(new: str) -> Mutant:
    return Mutant("it", "code_of_it.py", "2 * number", new, ("test_it.py",), "twice is not twice")


@pytest.mark.parametrize(("new", "by"), [("3 * number", "test_it.py::test_double"), ("number**2", None)])
def test_a_bug_is_killed_by_a_test_that_fails(project: Path, new: str, by: str | None) -> None:
    assert killer(project, mutant(new)) == by
    assert (project / "code_of_it.py").read_text() == CODE, "the next one begins with the code as it is"


def test_a_bug_that_cannot_even_be_imported_is_not_killed(project: Path) -> None:
    with pytest.raises(NotUsableError, match=r"it: pytest ended with 2, and no test failed:(.|\n)*SyntaxError"):
        killer(project, mutant("2 **"))
    assert (project / "code_of_it.py").read_text() == CODE


def test_a_place_that_is_not_the_only_one_is_refused(project: Path) -> None:
    (project / "code_of_it.py").write_text(CODE + CODE)
    with pytest.raises(ValueError, match=r"2 times in code_of_it\.py, not once"):
        killer(project, mutant("3 * number"))


def test_the_copy_is_what_is_tested_and_its_files_are_its_own(tmp_path: Path) -> None:
    copy_project(tmp_path)
    changed = tmp_path / LIST.relative_to(ROOT)
    before = LIST.read_bytes()
    changed.write_text("")
    assert LIST.read_bytes() == before
    (tmp_path / "batchcap" / "__init__.py").unlink()
    with pytest.raises(NotUsableError, match="would be tested, not the copy"):
        require_usable(tmp_path, [])
