"""The tar files of WebDataset, read as its readers do: names up to the first dot belong together."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from batchcap.config import InputConfig, JobConfig, OutputsConfig
from batchcap.outputs.convert import convert
from tests.images.samples import encode, noise
from tests.inputs.parquets import write_table
from tests.outputs.conftest import Run, parquet_job


def samples(path: Path) -> dict[str, dict[str, bytes]]:
    """The samples of a tar file: consecutive members with one key, by what follows the key."""
    found: dict[str, dict[str, bytes]] = {}
    last = ""
    with tarfile.open(path) as tar:
        for member in tar:
            folder, _slash, name = member.name.rpartition("/")
            key, _dot, extension = name.partition(".")
            key = f"{folder}/{key}"
            assert key == last or key not in found, "a key comes back"
            last = key
            file = tar.extractfile(member)
            assert file is not None
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
            found.setdefault(key, {})[extension] = file.read()
    return found


def all_samples(folder: Path) -> list[dict[str, bytes]]:
    """The samples of all tar files."""
    return [sample for path in sorted(folder.glob("*.tar")) for sample in samples(path).values()]


def test_a_sample_for_each_row(two_prompts: JobConfig, run: Run, tmp_path: Path) -> None:
    run(two_prompts)
    (written,) = convert(Path(two_prompts.output), ["webdataset"], OutputsConfig())
    assert (written.captions, written.files) == (6, 3)
    folder = tmp_path / "out-webdataset"
    assert sorted(path.name for path in folder.glob("*.tar")) == [f"captions-0000{number}.tar" for number in range(3)]
    found = all_samples(folder)
    assert [set(sample) for sample in found] == [{"png", "short.txt", "long.txt", "json"}] * 3
    for sample, name in zip(found, ("a.png", "sub/b.jpg", "sub/c d.webp"), strict=True):
        assert sample["png"] == (tmp_path / "in" / name).read_bytes()
        assert sample["long.txt"].decode() == f"long of {name}."
        captions = {"caption_short": f"short of {name}.", "caption_long": f"long of {name}."}
        assert json.loads(sample["json"]) == {"id": name, **captions}


def test_columns_and_hostile_ids(config: JobConfig, run: Run, tmp_path: Path) -> None:
    ids = ["same", "same", "a.b.c", "../../x.png", "é" * 200, "d.e/f", ".hidden"]
    columns: dict[str, Any] = {"image": [encode(noise(20, 10), "JPEG")] * len(ids), "name": ids}
    write_table(tmp_path / "x.parquet", columns)
    given = InputConfig((str(tmp_path / "x.parquet"),), id_column="name", keep_columns=("name",))
    config = replace(config, input=given, placement=replace(config.placement, rows_per_part=10))
    run(config)
    convert(Path(config.output), ["webdataset"], OutputsConfig())
    found = samples(tmp_path / "out-webdataset/captions-00000.tar")
    assert [json.loads(sample["json"])["name"] for sample in found.values()] == ids
    assert all(set(sample) == {"jpg", "txt", "json"} for sample in found.values())
    assert not any("." in key or key.startswith("//") for key in found)


def test_the_same_rows_give_the_same_bytes(config: JobConfig, run: Run, tmp_path: Path) -> None:
    config = parquet_job(config, tmp_path)
    run(config)
    convert(Path(config.output), [f"webdataset:{tmp_path / one}" for one in "xy"], OutputsConfig())
    (first,), (second,) = (list((tmp_path / one).glob("*.tar")) for one in "xy")
    assert first.read_bytes() == second.read_bytes()
