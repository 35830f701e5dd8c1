"""No benchmark sends anything: batchcap's switches come before the libraries, and peers are handed them."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers.environments import run_logged
from peers.rounds import _environment

from batchcap.core.offline import SWITCHES
from tests.benchmarks.test_bench import TASK

PROGRAMS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))
READ_SWITCHES = {"onnxruntime", "onnxruntime_genai", "huggingface_hub", "transformers", "datasets", "ray"}
OF_OPENVINO = {"CI": "true", "NNCF_CI": "1"}


def _imported(path: Path) -> Iterator[str]:
    """The top-level packages that a program imports, in order."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_batchcap_is_imported_before_what_reads_its_switches(program: Path) -> None:
    imported = list(_imported(program))
    first = min((imported.index(name) for name in READ_SWITCHES & set(imported)), default=len(imported))
    assert "batchcap" in imported[: first + 1] or not READ_SWITCHES & set(imported)


def test_peers_are_handed_the_switches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    wanted = {switch.variable: switch.value for switch in SWITCHES} | OF_OPENVINO
    assert _environment(TASK).items() >= wanted.items()
    code = f"import os; print(all(os.environ[name] == value for name, value in {wanted!r}.items()))"
    run_logged([sys.executable, "-S", "-c", code], tmp_path)
    assert (tmp_path / "prepare.log").read_text().splitlines()[-1] == "True"
