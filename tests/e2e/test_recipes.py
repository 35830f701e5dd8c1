"""docs/outputs.md by the letter: the commands of each recipe, run in a folder like its reader's, and what came out.

Its checkpoint of 2B is the demo model here, and a few drawn scenes are the images.
"""

import csv
import json
import random
import re
import shlex
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from batchcap.demo.scenes import compose, draw
from tests.docs.markdown import blocks, section, text_of
from tests.e2e.command import ONNX, batchcap
from tests.shared import linked_copy
from tests.stores import Bucket, client, moto_url

pytestmark = pytest.mark.slow
PAGE = "docs/outputs.md"
IMAGES = ("a", "b", "sub/c")
HTML = '<!DOCTYPE html>\n<img src="a.png">\n<img src="sub/c.png" alt="">\n'


def headings() -> list[str]:
    """Headings with a command below them; the page's title is one."""
    found = re.findall(r"^#+ .+$", text_of(PAGE), re.MULTILINE)
    return [one for one in found if "batchcap " in "".join(blocks(_text_below(one), "sh"))]


def _text_below(heading: str) -> str:
    return section("\n" + text_of(PAGE), heading)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, demo_cache: Path) -> Path:
    """Images, tables, pages, a model, and a job over `photos` that is done."""
    folder = tmp_path_factory.mktemp("world")
    cache = linked_copy(demo_cache, folder / "cache")
    (bundle,) = (path for path in cache.glob("demo-*") if path.is_dir())
    (folder / "qwen3-vl-2b-int4").symlink_to(bundle)
    for name in ("photos", "training-images", "home/Pictures", "site"):
        _draw_images(folder / name)
    (folder / "site/index.html").write_text(HTML)
    (folder / "lake").mkdir()
    images = [(folder / "photos" / f"{name}.png").read_bytes() for name in IMAGES]
    pq.write_table(pa.table({"image": images, "price": [1, 2, 3]}), folder / "lake/x.parquet")
    done = batchcap("caption", "photos", "-m", "qwen3-vl-2b-int4", "-o", "captions", *ONNX, **_surroundings(folder))
    assert done.returncode == 0, done.stderr
    return folder


def _draw_images(folder: Path) -> None:
    for seed, name in enumerate(IMAGES):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = random.Random(seed)
        draw(compose(rng, 1.0), rng, 192, 192).save(path)


def _surroundings(folder: Path) -> dict[str, object]:
    return {"cwd": folder, "BATCHCAP_CACHE": str(folder / "cache"), "HOME": str(folder / "home")}


def _texts(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.txt"))}


def check_first(folder: Path) -> None:
    assert set(_texts(folder / "photos")) == {"a.txt", "b.txt", "sub/c.txt"}
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert [row["caption"] for row in rows] == list(_texts(folder / "photos").values())


def check_hub(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.load_dataset(str(folder / "birds"), split="train", cache_dir=str(folder / "hf"))
    assert len(data) == 3
    assert isinstance(data[0]["image"], Image.Image)
    assert "license: cc-by-4.0" in (folder / "birds/README.md").read_text()


def check_lake(folder: Path) -> None:
    table = pq.read_table(folder / "lake-captioned/x.parquet")
    assert table.column_names == ["image", "price", "caption", "verdict"]
    assert all(table["caption"].to_pylist())


def check_lora(folder: Path) -> None:
    assert set(_texts(folder / "training-images")) == {"a.txt", "b.txt", "sub/c.txt"}


def check_library(folder: Path) -> None:
    text = (folder / "home/Pictures/sub/c.xmp").read_text()
    assert "AltTextAccessibility" in text
    assert "ExtDescrAccessibility" in text


def check_site(folder: Path) -> None:
    page = (folder / "site-with-alts/index.html").read_text()
    assert re.search(r'<img alt="[^"]{5,}" src="a\.png">', page)
    assert '<img src="sub/c.png" alt="">' in page
    assert (folder / "site/index.html").read_text() == HTML


def check_bucket(folder: Path) -> None:
    objects = Bucket("my-bucket", moto_url()).objects()
    assert {name for name in objects if name.endswith(".txt")} == {f"texts/{name}.txt" for name in IMAGES}
    rows = [json.loads(line) for line in objects["birds.jsonl"].splitlines()]
    assert [row["caption"].encode() for row in rows] == [objects[f"texts/{name}.txt"] for name in IMAGES]
    assert pq.read_table(pa.BufferReader(objects["birds/data/train-00000.parquet"])).num_rows == 3
    assert "birds/README.md" in objects


def _with_bucket() -> dict[str, str]:
    """Surroundings in which the bucket of the page is there."""
    client().create_bucket(Bucket="my-bucket")
    return Bucket("my-bucket", moto_url()).environment


CHECKS: dict[str, Callable[[Path], None]] = {
    "# Getting captions where you need them": check_first,
    "### A dataset for the Hugging Face hub": check_hub,
    "### A table in a Parquet lake": check_lake,
    "### A folder for LoRA training": check_lora,
    "## A photo library": check_library,
    "## Alt texts for a site": check_site,
    "## Captions in a bucket": check_bucket,
}


def test_every_recipe_is_checked() -> None:
    assert headings() == list(CHECKS)


@pytest.mark.parametrize("heading", CHECKS)
def test_a_recipe(world: Path, tmp_path: Path, heading: str) -> None:
    folder = linked_copy(world, tmp_path / "here")
    (folder / "captions").rename(folder / "captions-of-photos")
    lines = [line for block in blocks(_text_below(heading), "sh") for line in block.replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("batchcap ")]
    store = _with_bucket() if "s3://" in _text_below(heading) else {}
    if commands[0][0] == "convert":
        (folder / "captions-of-photos").rename(folder / "captions")
    for words in commands:
        words = [word.replace("~", str(folder / "home")) if word.startswith("~") else word for word in words]  # noqa: PLW2901
        done = batchcap(*words, *(ONNX if words[0] == "caption" else ()), **_surroundings(folder), **store)
        assert done.returncode == 0, f"{words}\n{done.stderr}"
    CHECKS[heading](folder)


def test_tables_of_forms_name_every_form(world: Path, tmp_path: Path) -> None:
    """And each can be written of one job."""
    from batchcap.config import FORMS  # noqa: PLC0415

    rows = re.findall(r"^\| `([\w-]+)` \|", text_of(PAGE), re.MULTILINE)
    assert sorted(rows) == sorted(FORMS)
    folder = linked_copy(world, tmp_path / "here")
    forms = [name for name in FORMS if name not in ("dataset", "html-alt")]
    done = batchcap(
        "convert", "captions", *(word for name in forms for word in ("--to", name)), **_surroundings(folder)
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(forms)
    with (folder / "captions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
    with tarfile.open(next((folder / "captions-webdataset").glob("*.tar"))) as file:
        assert len(file.getnames()) == 9
