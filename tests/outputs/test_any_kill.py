"""SIGKILL at any step of writing any form: files are whole, nobody else's are touched, and a second run ends it all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchcap.config import Existing, FolderImages, ImagesOf, InputConfig, JobConfig, OutputsConfig
from batchcap.core.atomic import TEMPORARY_SUFFIX
from batchcap.core.jobfolder import DATASET_MARK
from batchcap.job.run import run_job
from batchcap.outputs.convert import convert
from tests.fake_engine import FakeEngine, SilentProgress
from tests.images.samples import encode, noise
from tests.inputs.archives import tar_bytes, zip_bytes
from tests.inputs.parquets import write_table
from tests.outputs.conftest import Run, captioned
from tests.outputs.dying import KILLED, End, end_of
from tests.outputs.xmp_samples import described

IN_MEMORY = Path("/dev/shm")
# Of each form the first moments are tried, when a folder becomes our own, and some of the rest; all with ALL_KILLS=1.
FIRST, REST = 4, 3
NAMES = ("a.png", "sub/b.jpg", "sub/c d.webp", "cut.png", "bad.png")


@dataclass(frozen=True)
class Case:
    """A conversion.

    Attributes:
        form: `FORM`, or `FORM:WHERE` inside the scene.
        settings: how it is written.
        before: settings of a conversion before it; None: there was none.
        has_tables: whether the inputs are tables.
    """

    form: str
    settings: dict[str, Any]
    before: dict[str, Any] | None = None
    has_tables: bool = False

    def __str__(self) -> str:
        """Its id."""
        words = [
            self.form.replace(":", "-"),
            *(str(value) for value in self.settings.values() if type(value) is not tuple),
        ]
        return "-".join([*words, *(["again"] if self.before is not None else [])])


BOTH = {"verdicts": ("ok", "truncated")}
APPEND = {"existing": Existing.APPEND}
CASES = (
    Case("txt", {}),
    Case("txt", {**APPEND, **BOTH}, before=APPEND),
    Case("txt:tree", BOTH, before={}),
    Case("json", APPEND),
    Case("xmp", APPEND),
    Case("xmp", BOTH, before={}),
    *(Case(form, BOTH, before) for form in ("jsonl", "csv", "arrow") for before in (None, {})),
    *(Case("imagefolder", {"folder_images": one, **BOTH}, before) for one in FolderImages for before in (None, {})),
    Case("hf-parquet", {}),
    Case("hf-parquet", BOTH, before={}),
    Case("webdataset", {}),
    Case("webdataset", BOTH, before={}),
    Case("dataset", {}, has_tables=True),
    Case("dataset", BOTH, before={}, has_tables=True),
    Case("html-alt:pages", {"html_pages": "site"}),
)


# What is captioned, in which forms (`@`: inside of the scene), and with which options of the inputs.
RUNS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "in": (("txt", "json", "xmp", "imagefolder:@images"), {}),
    "x.tar": (("txt:@tree", "webdataset:@tars", "jsonl:@all.jsonl"), {}),
    "x.jsonl": (("dataset:@tables", "xmp:@tree", "csv:@all.csv"), {}),
    "x.parquet": (("hf-parquet:@data", "arrow:@all.arrow", "json:@tree"), {"images": ImagesOf.EACH}),
    "x.zip": (("hf-parquet:@data", "txt:@tree"), {"sample": 4}),
}


class Scene:
    """A finished job with files of others around it, which can be put back as it was.

    Args:
        folder: with the inputs and the job folder.
        copy: a place for the copy.
        case: what is to be converted.
    """

    def __init__(self, folder: Path, copy: Path, case: Case) -> None:
        self.folder = folder
        self.case = case
        self._copy = copy
        if case.before is not None:
            assert self.converted(settings=case.before).code == 0
        shutil.copytree(folder, copy, symlinks=True)

    def put_back(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self._copy, self.folder, symlinks=True)

    def converted(self, dies_at: int = 0, settings: dict[str, Any] | None = None) -> End:
        """Convert in a process that dies at a step."""
        form, _colon, where = self.case.form.partition(":")
        values = dict(self.case.settings if settings is None else settings)
        if "folder_images" in self.case.settings:
            values["folder_images"] = self.case.settings["folder_images"]
        if "html_pages" in values:
            values["html_pages"] = str(self.folder / "site")
        asked = f"{form}:{self.folder / where}" if where else form

        def work() -> str:
            (written,) = convert(self.folder / "out", [asked], OutputsConfig(**values))
            return written.to_text()

        return end_of(work, dies_at)

    def files(self) -> dict[str, bytes]:
        """Every file and its content, without what the job keeps for itself."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and path.name != DATASET_MARK and not name.startswith("out/__batchcap"):
                found[name] = path.read_bytes()
        return found


class RunScene(Scene):
    """The same with a whole run in the place of the conversion."""

    def __init__(self, folder: Path, copy: Path, config: JobConfig) -> None:
        self._config = config
        super().__init__(folder, copy, Case("", {}))

    def converted(self, dies_at: int = 0, settings: dict[str, Any] | None = None) -> End:
        """Run the job in a process that dies at a step."""

        def work() -> int:
            engine = FakeEngine(room=1, end=captioned, reads_images=True)
            return int(run_job(self._config, SilentProgress(), lambda _config: engine).exit_code)

        return end_of(work, dies_at)


def write_inputs(path: Path) -> None:
    """A table or an archive of seven rows, two of which have no good caption; nothing for a folder."""
    images = {f"{name}.png": encode(noise(20, 10)) for name in ("a", "b/c", "cut", "bad", "d", "e")}
    if path.suffix in (".tar", ".zip"):
        path.write_bytes((tar_bytes if path.suffix == ".tar" else zip_bytes)(images))
    elif path.suffix == ".jsonl":
        names = ["in/a.png", "in/sub/b.jpg", "gone.png", "in/cut.png", "in/a.png"]
        path.write_text("".join(json.dumps({"image": name, "n": row}) + "\n" for row, name in enumerate(names)))
    elif path.suffix == ".parquet":
        lists = pa.array([list(images.values())[:2], [], None, [b"no image"]], pa.list_(pa.binary()))
        write_table(path, {"images": lists, "n": range(4)}, row_group_size=3)


def write_surroundings(folder: Path) -> None:
    """Files of others, where captions go and elsewhere."""
    (folder / "in/a.txt").write_text("mine\n")
    (folder / "in/sub/b.json").write_text('{"tags": ["x"]}')
    (folder / "in/sub/b.xmp").write_text(described("adobe", "Mine."))
    (folder / "in/notes.txt").write_text("notes")
    (folder / "site").mkdir()
    for name in ("index.html", "more.html"):
        (folder / "site" / name).write_text('<p><img src="../in/a.png"><img src="../in/sub/b.jpg"></p>' * 50)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory, where that is a folder: no power is cut here."""
    if not os.access(IN_MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as made:
        yield Path(made)


@pytest.fixture
def make_scene(config: JobConfig, run: Run, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs the job of a case, and gives its scene."""

    def make(case: Case) -> Scene:
        scene = tmp_path / "scene"
        (tmp_path / "in").rename(tmp_path / "scene-in")
        scene.mkdir()
        (tmp_path / "scene-in").rename(scene / "in")
        inputs = scene / "in"
        if case.has_tables:
            inputs = scene / "tables"
            for name in ("a", "b"):
                (inputs / name).mkdir(parents=True)
                columns = {"image": [encode(noise(20, 10))] * 5, "name": [f"{name}/{one}" for one in NAMES]}
                write_table(inputs / name / "rows.parquet", columns, row_group_size=2)
        ids = {"id_column": "name"} if case.has_tables else {}
        run(replace(config, input=InputConfig((str(inputs),), **ids), output=str(scene / "out")))
        write_surroundings(scene)
        return Scene(scene, tmp_path / "copy", case)

    return make


def moments(steps: int) -> list[int]:
    if "ALL_KILLS" in os.environ or steps <= FIRST + REST:
        return list(range(1, steps + 1))
    return [*range(1, FIRST + 1), *(steps - (steps - FIRST) * number // REST for number in range(REST - 1, -1, -1))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_killed_at_any_step(case: Case, make_scene: Any) -> None:
    assert_whole_after_any_kill(make_scene(case))


@pytest.mark.parametrize("inputs", RUNS)
def test_a_run_killed_at_any_step(inputs: str, config: JobConfig, tmp_path: Path) -> None:
    """While it captions, too, and whatever it reads."""
    forms, words = RUNS[inputs]
    scene = tmp_path / "scene"
    scene.mkdir()
    (tmp_path / "in").rename(scene / "in")
    given = scene / inputs
    write_inputs(given)
    write_surroundings(scene)
    also = tuple(form.replace("@", f"{scene}/") for form in forms)
    asked = replace(
        config,
        input=InputConfig((str(given),), keep_columns=("*",), **words),
        output=str(scene / "out"),
        outputs=OutputsConfig(also=also, existing=Existing.APPEND),
    )
    assert_whole_after_any_kill(RunScene(scene, tmp_path / "copy", asked))


def assert_whole_after_any_kill(scene: Scene) -> None:
    """Kill it at its steps: what is there is old or new, and what comes out in the end as if nobody had."""
    before = scene.files()
    whole = scene.converted()
    assert whole.code == 0, whole.said
    expected = scene.files()
    assert expected != before
    for step in moments(whole.steps):
        scene.put_back()
        killed = scene.converted(dies_at=step)
        assert killed.code == KILLED or 0 < killed.steps < step, "a run has a step less where it is faster"
        for name, content in scene.files().items():
            if not name.endswith(TEMPORARY_SUFFIX):
                assert content in (before.get(name), expected.get(name)), f"step {step}: {name} is neither old nor new"
        again = scene.converted()
        assert (again.code, again.said) == (0, whole.said), f"step {step}"
        found = scene.files()
        assert found.keys() == expected.keys(), f"step {step}"
        assert found == expected, f"step {step}"
