"""Each mutant of the list fits the code and the tests of today."""

import ast
from functools import cache

import pytest

from tests.mutants.listing import ROOT, Mutant, read_mutants

MUTANTS = read_mutants()


@cache
def functions_in(file: str) -> frozenset[str]:
    """Names of the test functions of a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[:5] == "test_")


def test_names_are_told_apart() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) > 0


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_one_place_and_compiles(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    mutated = mutant.applied(text)
    compile(mutated, mutant.file, "exec")
    assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(text)), "more than words and spaces are another"
    assert mutant.file.startswith("batchcap/")
    assert mutant.why


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_tests_of_a_mutant_are_there(mutant: Mutant) -> None:
    assert mutant.tests
    for test in mutant.tests:
        file, _separator, name = test.partition("::")
        assert functions_in(file)
        assert not name or name in functions_in(file), test
