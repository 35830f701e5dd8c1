"""An install without PyTorch captions with a finished bundle; what needs PyTorch says so.

The environment is a real one: a fresh interpreter that sees the distributions of `requirements-onnx.txt`, what these
require, and batchcap; nothing else.
"""

import os
import re
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from batchcap.model.bundle import Bundle
from tests.e2e.inputs import write_images
from tests.e2e.process import TIMEOUT_S, captions, run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LIST = ROOT / "requirements-onnx.txt"
NEVER = {"torch", "transformers", "onnxruntime-genai", "onnx", "safetensors"}
IMAGES = 6
SETTINGS = ("--max-new-tokens", "12", "--max-visual-tokens", "64", "--vision-backend", "onnx")


def listed() -> list[Requirement]:
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def with_what_they_require(names: list[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        needs = [Requirement(line) for line in metadata.requires(name) or []]
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment without PyTorch."""
    folder = tmp_path_factory.mktemp("without-torch") / "venv"
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python*/site-packages"))
    for name in with_what_they_require([one.name for one in listed()]):
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))))
    (site / "batchcap").symlink_to(ROOT / "batchcap")
    return folder / "bin" / "python"


def batchcap(python: Path, *arguments: str, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(python), "-m", "batchcap.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment,
        cwd=python.parent,
    )
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_list_has_the_bounds_of_the_project() -> None:
    project = {Requirement(line).name: Requirement(line) for line in metadata.requires("batchcap") or []}
    assert not {one.name for one in listed()} & NEVER
    for one in listed():
        assert str(project[one.name].specifier) == str(one.specifier), one.name


def test_the_environment_has_no_torch(python: Path) -> None:
    names = "('torch', 'transformers', 'onnxruntime_genai', 'onnx', 'safetensors')"
    code = f"from importlib.util import find_spec; print([name for name in {names} if find_spec(name)])"
    assert subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_captions_are_those_of_a_full_install(python: Path, bundle: Bundle, tmp_path: Path, dtype: str) -> None:
    images = str(write_images(tmp_path / "pictures", IMAGES))
    job = ("caption", images, "--model", str(bundle.folder), *SETTINGS, "--vision-dtype", dtype)
    batchcap(python, *job, "--output", str(tmp_path / "without"))
    run(*job, "--output", str(tmp_path / "with"))
    found, wanted = captions(tmp_path / "without"), captions(tmp_path / "with")
    assert found["caption"].to_pylist() == wanted["caption"].to_pylist()
    assert found["status"].to_pylist().count("ok") == IMAGES


def test_onnx_is_what_auto_means_here(python: Path, bundle: Bundle, tmp_path: Path) -> None:
    images = str(write_images(tmp_path / "pictures", 2))
    batchcap(python, "caption", images, "--model", str(bundle.folder), "--output", str(tmp_path / "out"))
    assert len(captions(tmp_path / "out")) == 3
    assert "onnx fp32" in batchcap(python, "doctor", "--model", str(bundle.folder)).stdout


def test_what_needs_torch_says_so(python: Path, bundle: Bundle, tmp_path: Path) -> None:
    images = str(write_images(tmp_path / "pictures", 2))
    job = ("caption", images, "--output", str(tmp_path / "out"))
    done = batchcap(python, *job, "--model", str(bundle.folder), "--vision-backend", "torch", expect=2)
    assert "PyTorch is not installed: install torch, or use --vision-backend onnx" in done.stderr
    done = batchcap(python, *job, "--model", "demo", expect=2, BATCHCAP_CACHE=str(tmp_path / "cache"))
    assert "torch, transformers, onnxruntime-genai" in done.stderr
    assert "pass --model BUNDLE" in done.stderr
    done = batchcap(
        python, "export", str(ROOT / "batchcap" / "demo" / "checkpoint"), "-o", str(tmp_path / "b"), expect=2
    )
    assert "an export needs torch, transformers, onnxruntime-genai" in done.stderr


def test_a_run_with_onnx_never_loads_torch(bundle: Bundle, tmp_path: Path) -> None:
    """Where it is installed, too: a module of that name that ends the process takes its place."""
    for name in ("torch", "transformers"):
        (tmp_path / "trap" / name).mkdir(parents=True)
        (tmp_path / "trap" / name / "__init__.py").write_text("import os; os._exit(99)")
    images = str(write_images(tmp_path / "pictures", 2))
    job = ("caption", images, "--model", str(bundle.folder), *SETTINGS, "--output", str(tmp_path / "out"))
    run(*job, environment={"PYTHONPATH": str(tmp_path / "trap")}, warm=False)
    trapped = [sys.executable, "-c", "import torch"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "trap")}
    assert subprocess.run(trapped, env=environment, check=False).returncode == 99
