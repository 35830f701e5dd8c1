"""No model by accident: it has to be named, in one of the ways there are, and the demo model is named everywhere."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from batchcap.model.bundle import Bundle
from batchcap.store.folder import JobFolder
from tests.e2e.command import assert_refused, batchcap, read_rows
from tests.shared import linked_copy

OPTIONS = ("--max-new-tokens", 4, "--vision-backend", "onnx")
JOB = 'output = "out"\n[input]\ninputs = ["0.png"]\n[generation]\nmax_new_tokens = 4\n[vision]\nbackend = "onnx"\n'


@pytest.fixture(scope="module")
def cache(demo_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the demo model is."""
    return str(linked_copy(demo_cache, tmp_path_factory.mktemp("no-model") / "cache"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 48), (200, 30, 40)).save(tmp_path / "0.png")
    return tmp_path / "0.png"


def test_no_model_is_refused_before_anything_is_made(tmp_path: Path, image: Path) -> None:
    done = batchcap("--quiet", "caption", image, "-o", tmp_path / "out", BATCHCAP_CACHE=str(tmp_path / "cache"))
    assert_refused(
        done, "no model is named", "batchcap export CHECKPOINT --output BUNDLE", "--model demo", "BATCHCAP_MODEL"
    )
    (tmp_path / "job.toml").write_text(JOB)
    assert_refused(batchcap("run", tmp_path / "job.toml"), "no model is named", 'model = "BUNDLE"')
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "job.toml"]


def test_the_environment_names_it(tmp_path: Path, image: Path, tiny_bundle_int4: Bundle) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    environment = {"BATCHCAP_MODEL": str(tiny_bundle_int4.folder)}
    done = batchcap("caption", image, "-o", tmp_path / "out", *OPTIONS, **environment)
    assert done.returncode == 0, done.stderr
    again = batchcap("--quiet", "run", tmp_path / "job.toml", **environment)
    assert (again.returncode, again.stderr) == (0, ""), "the same job"
    assert json.loads(batchcap("status", tmp_path / "out", "--json").stdout)["model"] == environment["BATCHCAP_MODEL"]
    empty = batchcap("caption", image, "-o", tmp_path / "2", BATCHCAP_MODEL="")
    assert_refused(empty, "no model is named")


def test_the_demo_model_is_named_everywhere(tmp_path: Path, image: Path, cache: str) -> None:
    output = tmp_path / "out"
    done = batchcap("-q", "caption", image, "-o", output, "-m", "demo", *OPTIONS, BATCHCAP_CACHE=cache)
    assert (done.returncode, done.stderr) == (0, ""), "quiet is quiet"
    assert done.stdout.startswith("1 captions of the demo model, 0 failed (")
    assert json.loads(JobFolder(output).summary_path.read_text())["bundle"]["source"] == "demo"
    (part,) = JobFolder(output).part_paths()
    assert json.loads(pq.read_metadata(part).metadata[b"batchcap.bundle"])["source"] == "demo"
    assert "model     demo" in batchcap("status", output).stdout
    assert batchcap("report", output).returncode == 0
    assert "demo int4" in JobFolder(output).report_path.read_text()


def test_a_job_begun_without_a_model_goes_on(tmp_path: Path, image: Path, cache: str) -> None:
    """When no model had to be named, the job folder says null, and job files say nothing."""
    output = tmp_path / "out"
    assert batchcap("caption", image, "-o", output, "-m", "demo", *OPTIONS, BATCHCAP_CACHE=cache).returncode == 0
    before = read_rows(output)
    job = JobFolder(output).job_path
    content = json.loads(job.read_text())
    assert content["configuration"]["model"] == "demo"
    content["configuration"]["model"] = None
    job.write_text(json.dumps(content))
    (tmp_path / "job.toml").write_text(JOB)
    gone_on = batchcap("--quiet", "run", tmp_path / "job.toml", BATCHCAP_CACHE=cache)
    assert gone_on.returncode == 0, gone_on.stderr
    assert 'write model = "demo" into the file' in gone_on.stderr
    assert_refused(batchcap("caption", image, "-o", output, *OPTIONS), "goes on with it")
    named = batchcap("-q", "caption", image, "-o", output, "-m", "demo", *OPTIONS, BATCHCAP_CACHE=cache)
    assert (named.returncode, named.stderr) == (0, "")
    assert "model     demo" in batchcap("status", output).stdout
    assert read_rows(output) == before


def test_a_job_file_says_demo(tmp_path: Path, image: Path, cache: str) -> None:
    """And not the folder of that name beside it."""
    assert image.exists()
    (tmp_path / "job.toml").write_text(f'model = "demo"\n{JOB}')
    done = batchcap("run", tmp_path / "job.toml", BATCHCAP_CACHE=cache)
    assert done.returncode == 0, done.stderr
    assert "of the demo model" in done.stdout
    (tmp_path / "job.toml").write_text(f'model = "./demo"\n{JOB}')
    assert_refused(batchcap("run", tmp_path / "job.toml"), f"there is no bundle at {tmp_path / 'demo'}")
