"""The direction of imports: each part of the package imports only what stands below it; lazy ones count, too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchcap

PACKAGE = Path(batchcap.__file__).parent
# The highest first; parts on one line don't know each other.
FLOORS = (
    ("cli",),
    ("commands",),
    ("report",),
    ("job",),
    ("outputs",),
    ("verify",),
    ("engines", "export"),
    ("images", "vision", "decoder"),
    ("inputs", "store", "model"),
    ("config",),
    ("demo", "remote"),
    ("core",),
)
MAX_FUNCTION_LINES, MAX_PARAMETERS, MAX_FILE_LINES = 50, 6, 430
FLOOR_OF = {part: len(FLOORS) - number for number, parts in enumerate(FLOORS) for part in parts}
# Folders of the repository that use the package, and that it does without.
AROUND = frozenset({"benchmarks", "docs", "tests", "training"})


def modules() -> dict[str, Path]:
    """Every module of the package by its name below `batchcap`; a package is its `__init__`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def names_imported(name: str) -> Iterator[str]:
    """The full names of what a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported(name: str) -> Iterator[str]:
    """The modules of the package that a module imports, anywhere in it."""
    for one in names_imported(name):
        top, _dot, below = one.partition(".")
        if top == "batchcap":
            yield below if below in MODULES else below.rpartition(".")[0]


def part(name: str) -> str:
    """The part of the package that a module is in."""
    return name.partition(".")[0]


EDGES = sorted({(name, target) for name in MODULES if name for target in imported(name) if target})


def is_downward(importer: str, target: str) -> bool:
    """Whether the target stands below, or in the same part."""
    return part(importer) == part(target) or FLOOR_OF[part(importer)] > FLOOR_OF[part(target)]


def test_functions_are_short_and_take_few_parameters() -> None:
    """The house's measures: 50 lines with the docstring, 6 parameters, files of about 400 lines."""
    wrong = []
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > MAX_FILE_LINES:
            wrong.append(f"{name} has {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([one for one in given if one.arg not in ("self", "cls")])
            if lines > MAX_FUNCTION_LINES or count > MAX_PARAMETERS:
                wrong.append(f"{name}.{node.name} has {lines} lines and {count} parameters")
    assert wrong == []


def test_at_the_top_is_the_command_only() -> None:
    assert {name for name in MODULES if name and "." not in name and MODULES[name].name != "__init__.py"} == {"cli"}


def test_every_module_has_its_floor() -> None:
    assert {part(name) for name in MODULES if name} == set(FLOOR_OF)


def test_the_package_stands_without_what_is_around_it() -> None:
    assert all((PACKAGE.parent / folder).is_dir() for folder in AROUND)
    assert [(name, one) for name in MODULES for one in names_imported(name) if one.partition(".")[0] in AROUND] == []


def test_no_import_runs_upward_or_sideways() -> None:
    assert {edge for edge in EDGES if not is_downward(*edge)} == set()


def test_a_run_is_handed_its_bundle() -> None:
    """A job does not know how bundles are made, though that stands below it."""
    assert [edge for edge in EDGES if part(edge[0]) == "job" and part(edge[1]) in {"export", "verify"}] == []


@pytest.mark.parametrize("depth", [1, 2, 9])
def test_there_is_no_circle(depth: int) -> None:
    """Among parts, folders and files."""
    graph: dict[str, set[str]] = {}
    for edge in EDGES:
        importer, target = (".".join(name.split(".")[:depth]) for name in edge)
        if importer != target:
            graph.setdefault(importer, set()).add(target)
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join((*way[way.index(name) :], name))
        if name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
