"""No profile loses more than a point of the demo model's exact captions, and `small` changes none."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from profiles import MAX_LOST, Row, Scenes, measure

from batchcap.config import Profile
from batchcap.export.checkpoint.options import ExportOptions, Precision
from batchcap.export.demo import demo_checkpoint
from batchcap.export.export import export_bundle
from batchcap.store.folder import JobFolder
from training.evaluate import examples

SCENES = 120


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    folder = tmp_path_factory.mktemp("scenes")
    truth = {}
    for number, example in enumerate(examples(SCENES)):
        example.image.save(folder / f"{number:05d}.png")
        truth[f"{number:05d}.png"] = example.caption
    return Scenes(folder, truth, reference=truth)


def _captions(output: Path) -> list[str]:
    captions: list[str] = pq.read_table(output)["caption"].to_pylist()
    return captions


@pytest.mark.slow
def test_what_profiles_cost(scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path / "cache"))
    rows: dict[tuple[str, Profile], Row] = {}
    for precision, profiles in ((Precision.INT4, tuple(Profile)), (Precision.W8A8, (Profile.FAST,))):
        bundle = tmp_path / str(precision)
        export_bundle(str(demo_checkpoint()), bundle, ExportOptions(precision=precision))
        for profile in profiles:
            rows[precision, profile] = measure(scenes, bundle, profile, tmp_path / f"{precision}-{profile}")
        job = json.loads((JobFolder(tmp_path / f"{precision}-{Profile.FAST}").job_path).read_text())
        assert job["fingerprint"]["vision-dtype"] == "int8", "else nothing else was measured"
    auto, small = (_captions(tmp_path / f"{Precision.INT4}-{profile}") for profile in (Profile.AUTO, Profile.SMALL))
    assert small == auto
    default = rows[Precision.INT4, Profile.AUTO]
    assert default.exact > 0.9
    for row in rows.values():
        assert default.exact - row.exact <= MAX_LOST, row
