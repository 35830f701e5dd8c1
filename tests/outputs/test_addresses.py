"""Forms at addresses: the same as here, each object whole and put once, nothing of somebody else's replaced."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import moto.s3.models
import pytest

from batchcap.config import Existing, FolderImages, JobConfig, OutputsConfig
from batchcap.core.errors import BatchcapError, ExitCode, StorageError, UsageError
from batchcap.core.jobfolder import DATASET_MARK
from batchcap.core.sources import FileAt
from batchcap.outputs import uploads
from batchcap.outputs.convert import convert
from batchcap.outputs.form import Written
from batchcap.remote import puts
from batchcap.remote.attempts import NetworkError
from tests.outputs.conftest import Run, parquet_job
from tests.stores import Bucket, FaultyBucket, client

FOLDERS = ("imagefolder", "hf-parquet", "webdataset")
TREES = ("txt", "json", "xmp")
FILES = ("jsonl", "csv", "arrow")
CAPTIONS = {
    "a.txt": b"Caption of a.png.",
    "sub/b.txt": b"Caption of sub/b.jpg.",
    "sub/c d.txt": b"Caption of sub/c d.webp.",
}


def converted(config: JobConfig, form: str, **settings: object) -> Written:
    outputs = OutputsConfig(folder_images=FolderImages.COPY, **settings)  # type: ignore[arg-type]
    (written,) = convert(Path(config.output), [form], outputs, allow_remote=True)
    return written


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_mark(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if DATASET_MARK not in name}


def staged(config: JobConfig) -> list[str]:
    return [path.name for path in (Path(config.output) / "__batchcap").glob("staged/**/*")]


@pytest.mark.parametrize("form", [*FOLDERS, *TREES])
def test_a_tree_is_the_same_as_here(
    config: JobConfig, run: Run, tmp_path: Path, faulty: FaultyBucket, form: str
) -> None:
    """And is not put again."""
    run(config)
    here = converted(config, f"{form}:{tmp_path / 'birds'}")
    there = converted(config, f"{form}:{faulty.bucket.address}/x/birds/")
    assert replace(there, where="") == replace(here, where="")
    assert there.where == f"in {faulty.bucket.address}/x/birds"
    objects = faulty.bucket.objects("x/birds/")
    expected = {f"x/birds/{name}": content for name, content in tree(tmp_path / "birds").items()}
    assert without_mark(objects) == without_mark(expected)
    assert objects.keys() == expected.keys()
    assert staged(config) == []
    puts_before = faulty.way.count("PUT")
    assert replace(converted(config, f"{form}:{faulty.bucket.address}/x/birds"), where="") == replace(here, where="")
    assert faulty.way.count("PUT") == puts_before


@pytest.mark.parametrize("form", FILES)
def test_one_file_is_the_same_as_here(config: JobConfig, run: Run, tmp_path: Path, bucket: Bucket, form: str) -> None:
    run(config)
    converted(config, f"{form}:{tmp_path / 'x'}")
    converted(config, f"{form}:{bucket.address}/y/x")
    assert bucket.objects() == {"y/x": (tmp_path / "x").read_bytes()}
    assert staged(config) == []


def test_tables_once_more(config: JobConfig, run: Run, tmp_path: Path, faulty: FaultyBucket) -> None:
    config = parquet_job(config, tmp_path)
    run(config)
    converted(config, f"dataset:{tmp_path / 'lake'}")
    for _time in range(2):
        converted(config, f"dataset:{faulty.bucket.address}/lake")
        assert faulty.way.count("PUT", "x.parquet") == 1
    assert faulty.bucket.objects()["lake/x.parquet"] == (tmp_path / "lake/x.parquet").read_bytes()


def test_alt_texts(config: JobConfig, run: Run, tmp_path: Path, bucket: Bucket) -> None:
    run(config)
    (tmp_path / "in/index.html").write_text('<img src="a.png">')
    settings = {"html_pages": str(tmp_path / "in")}
    converted(config, f"html-alt:{tmp_path / 'pages'}", **settings)
    converted(config, f"html-alt:{bucket.address}", **settings)
    assert bucket.objects() == {"index.html": (tmp_path / "pages/index.html").read_bytes()}
    bucket.put("index.html", b"mine")
    assert converted(config, f"html-alt:{bucket.address}", **settings).kept == 1


def test_only_what_changed_is_put(config: JobConfig, run: Run, faulty: FaultyBucket) -> None:
    run(config)
    form = f"imagefolder:{faulty.bucket.address}/x"
    converted(config, form)
    before, count = faulty.bucket.objects(), faulty.way.count("PUT")
    converted(config, form, verdicts=("ok", "truncated"))
    after = faulty.bucket.objects()
    changed = {name for name in after if after[name] != before.get(name)}
    assert {name.rpartition("/")[2] for name in changed} == {"00000002.png", "metadata.jsonl", "README.md"}
    assert faulty.way.count("PUT") - count == len(changed)
    converted(config, form)  # the image that is left out again is removed
    assert faulty.bucket.objects() == before


def test_what_is_about_all_is_put_last(config: JobConfig, run: Run, faulty: FaultyBucket) -> None:
    run(config)
    converted(config, f"imagefolder:{faulty.bucket.address}/x")
    order = [path.rpartition("/")[2] for method, path in faulty.way.seen if method == "PUT"]
    assert order[0] == DATASET_MARK
    assert order[-2:] == ["metadata.jsonl", "README.md"]


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        (Existing.SKIP, b"mine"),
        (Existing.REPLACE, CAPTIONS["a.txt"]),
        (Existing.APPEND, b"mine, Caption of a.png."),
        (Existing.PREPEND, b"Caption of a.png. mine"),
    ],
)
def test_texts_of_somebody_else(
    config: JobConfig, run: Run, bucket: Bucket, existing: Existing, expected: bytes
) -> None:
    run(config)
    bucket.put("x/a.txt", b"mine")
    for _time in range(2):
        written = converted(config, f"txt:{bucket.address}/x", existing=existing)
        assert written.kept == (existing is Existing.SKIP)
        assert bucket.objects() == {f"x/{name}": text for name, text in CAPTIONS.items()} | {"x/a.txt": expected}


def test_existing_fail_is_told_before_any_work(config: JobConfig, run: Run, bucket: Bucket) -> None:
    bucket.put("sub/b.txt", b"mine")
    also = OutputsConfig(also=(f"txt:{bucket.address}",), existing=Existing.FAIL)
    job = replace(config, input=replace(config.input, allow_remote=True), outputs=also)
    with pytest.raises(UsageError, match=rf"1 caption files are there already.*{bucket.address}/sub/b.txt"):
        run(job, dies_after=0)
    assert bucket.objects() == {"sub/b.txt": b"mine"}


def test_what_somebody_has_changed_since_stays(config: JobConfig, run: Run, bucket: Bucket) -> None:
    run(config)
    form = f"txt:{bucket.address}/x"
    converted(config, form)
    bucket.put("x/a.txt", b"better")
    assert converted(config, form).kept == 1
    assert bucket.objects()["x/a.txt"] == b"better"


def test_what_somebody_has_extended_is_extended(config: JobConfig, run: Run, bucket: Bucket, tmp_path: Path) -> None:
    """An XMP file that is there already, under the name that another program gives it."""
    run(config)
    converted(config, f"xmp:{tmp_path / 'x'}")
    other = (tmp_path / "x/a.xmp").read_bytes().replace(b"Caption of a.png.", b"mine")
    bucket.put("x/a.png.XMP", other)
    assert converted(config, f"xmp:{bucket.address}/x").kept_texts == 3
    assert sorted(bucket.objects()) == ["x/a.png.XMP", "x/sub/b.xmp", "x/sub/c d.xmp"]


@pytest.mark.parametrize("form", ["jsonl", "imagefolder", "webdataset"])
def test_places_of_somebody_else_are_refused(config: JobConfig, run: Run, bucket: Bucket, form: str) -> None:
    run(config)
    key = "x/y" if form == "jsonl" else "x/y/z"
    bucket.put(key, b"mine")
    with pytest.raises(UsageError, match="--existing replace"):
        converted(config, f"{form}:{bucket.address}/x/y")
    assert bucket.objects() == {key: b"mine"}
    converted(config, f"{form}:{bucket.address}/x/y", existing=Existing.REPLACE)
    objects = bucket.objects()
    assert len(objects) > (form != "jsonl")
    assert (objects[key] == b"mine") == (form != "jsonl")


def test_a_folder_of_another_form_is_refused(config: JobConfig, run: Run, bucket: Bucket) -> None:
    run(config)
    converted(config, f"imagefolder:{bucket.address}/x")
    before = bucket.objects()
    with pytest.raises(UsageError, match="is not empty, and this job did not write it as webdataset"):
        converted(config, f"webdataset:{bucket.address}/x")
    assert bucket.objects() == before


def test_a_card_of_somebody_else_stays(config: JobConfig, run: Run, bucket: Bucket) -> None:
    run(config)
    form = f"hf-parquet:{bucket.address}/x"
    files = converted(config, form).files
    bucket.put("x/README.md", b"mine")
    written = converted(config, form)
    assert (written.kept, written.files) == (1, files - 1)
    assert bucket.objects()["x/README.md"] == b"mine"


def test_who_comes_in_between_is_not_overwritten(
    config: JobConfig, run: Run, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store compares: what is there is what was seen, or nothing."""
    run(config)
    put = uploads.put

    def late(one: puts.Put) -> str:
        if one.address.endswith("/a.txt"):
            bucket.put("a.txt", b"mine")
        return put(one)

    monkeypatch.setattr(uploads, "put", late)
    with pytest.raises(StorageError, match=r"a\.txt is not what it was: somebody else"):
        converted(config, f"txt:{bucket.address}")
    monkeypatch.undo()
    assert bucket.objects()["a.txt"] == b"mine"


@pytest.mark.parametrize("fault", ["slow_down", "cut_request", "cut_answer"])
@pytest.mark.parametrize("form", ["txt", "imagefolder", "jsonl"])
def test_what_passes(config: JobConfig, run: Run, tmp_path: Path, faulty: FaultyBucket, form: str, fault: str) -> None:
    """Also where the store has put an object and the answer was lost: the condition fails, and the object is ours."""
    run(config)
    converted(config, f"{form}:{tmp_path / 'x'}")
    faulty.way.happens(fault, 2)  # type: ignore[arg-type]
    converted(config, f"{form}:{faulty.bucket.address}/x")
    expected = tree(tmp_path / "x") if form != "jsonl" else {"": (tmp_path / "x").read_bytes()}
    objects = {name.removeprefix("x").removeprefix("/"): one for name, one in faulty.bucket.objects().items()}
    assert without_mark(objects) == without_mark(expected)


@pytest.mark.parametrize("form", ["txt", "imagefolder", "hf-parquet", "jsonl"])
def test_an_outage(config: JobConfig, run: Run, faulty: FaultyBucket, form: str) -> None:
    """The same command goes on with what is not there yet."""
    run(config)
    wanted = f"{form}:{faulty.bucket.address}/x"
    last = {"txt": "b.txt", "imagefolder": "metadata", "hf-parquet": "00001.parquet", "jsonl": "/x"}[form]
    faulty.way.happens("slow_down", 0, part=last)
    with pytest.raises(NetworkError, match="could not be written in 6 attempts") as caught:
        converted(config, wanted)
    assert caught.value.exit_code is ExitCode.STOPPED_EARLY
    there, count = faulty.bucket.objects(), faulty.way.count("PUT")
    assert not any(last in name for name in there)
    faulty.way.heals()
    converted(config, wanted)
    assert faulty.way.count("PUT") - count == len(faulty.bucket.objects()) - len(there)
    assert faulty.bucket.objects().items() >= there.items()


def test_an_outage_while_a_job_runs(config: JobConfig, run: Run, faulty: FaultyBucket) -> None:
    """Captions are safe, the result says so, and the same command puts the rest."""
    also = OutputsConfig(also=(f"txt:{faulty.bucket.address}", "jsonl"))
    job = replace(config, input=replace(config.input, allow_remote=True), outputs=also)
    faulty.way.happens("slow_down", 0, part="b.txt")
    with pytest.raises(NetworkError):
        run(job)
    summary = json.loads((Path(job.output) / "__batchcap/summary.json").read_text())
    assert (summary["exit_code"], summary["rows"], summary["ok"]) == (75, 5, 4)
    assert "batchcap convert" in summary["message"]
    assert Path(f"{job.output}.jsonl").exists()
    faulty.way.heals()
    assert run(job, dies_after=0).exit_code == ExitCode.COMPLETE
    assert faulty.bucket.objects() == CAPTIONS


@pytest.mark.parametrize("form", ["txt", "jsonl", "webdataset"])
def test_what_is_refused_before_any_work(config: JobConfig, run: Run, faulty: FaultyBucket, form: str) -> None:
    """Nothing may be put, or there is no such bucket."""

    def refused(address: str) -> str:
        allowed, also = replace(config.input, allow_remote=True), OutputsConfig(also=(f"{form}:{address}",))
        with pytest.raises(UsageError) as caught:
            run(replace(config, input=allowed, outputs=also), dies_after=0)
        return str(caught.value)

    with pytest.raises(UsageError, match="nothing is sent without --allow-remote"):
        replace(config, outputs=OutputsConfig(also=(f"{form}:{faulty.bucket.address}/x",)))
    assert "there is no such bucket" in refused("s3://nobodys-bucket/x")
    faulty.way.happens("refuse", 0, method="POST")
    assert "access is denied" in refused(f"{faulty.bucket.address}/x")
    assert faulty.bucket.objects() == {}


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("txt:https://example.com/x", "web servers take no files"),
        ("txt:ftp://example.com/x", "no address that can be written to"),
        ("txt:s3://bucket/a//b", "there can't be `//`"),
        ("jsonl:s3://bucket", "is one file: write the whole name, s3://bucket/captions.jsonl"),
        ("jsonl:S3://bucket/x/", "is one file"),
    ],
)
def test_places_that_make_no_sense(form: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        OutputsConfig(also=(form,))


def test_a_large_file_goes_in_parts(
    config: JobConfig, run: Run, tmp_path: Path, faulty: FaultyBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault costs one part, and an answer that was lost at the end nothing."""
    run(config)
    monkeypatch.setattr(puts, "PART_BYTES", 200)
    monkeypatch.setattr(moto.s3.models, "S3_UPLOAD_PART_MIN_SIZE", 1)
    converted(config, f"jsonl:{tmp_path / 'x'}")
    content = (tmp_path / "x").read_bytes()
    count = -(-len(content) // 200)
    assert count > 2
    faulty.way.happens("cut_request", 1, part="partNumber=2")
    faulty.way.happens("cut_answer", 1, method="POST", part="uploadId=")
    converted(config, f"jsonl:{faulty.bucket.address}/x")
    assert faulty.bucket.objects() == {"x": content}
    assert faulty.way.count("PUT") == count + 1
    assert open_uploads(faulty.bucket) == []
    faulty.way.happens("refuse", 1, part="partNumber=2")
    with pytest.raises(StorageError, match="access is denied"):
        converted(config, f"jsonl:{faulty.bucket.address}/x", verdicts=("ok", "truncated"))
    assert open_uploads(faulty.bucket) == []
    assert faulty.bucket.objects() == {"x": content}


def open_uploads(bucket: Bucket) -> list[object]:
    return client().list_multipart_uploads(Bucket=bucket.name).get("Uploads", [])


def test_a_store_without_conditions(config: JobConfig, run: Run, faulty: FaultyBucket) -> None:
    run(config)
    faulty.way.happens("no_conditions", 0)
    converted(config, f"txt:{faulty.bucket.address}")
    assert faulty.bucket.objects() == CAPTIONS


def test_a_folder_of_many_is_listed_page_by_page(
    config: JobConfig, run: Run, faulty: FaultyBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And few names are asked for one by one."""
    from batchcap.remote import listing  # noqa: PLC0415

    monkeypatch.setattr(listing, "_PAGE", 2)
    monkeypatch.setattr(uploads, "_FEW", 0)
    for number in range(5):
        faulty.bucket.put(f"sub/{number}", b"")
    faulty.bucket.put("sub/b.txt", b"mine")
    run(config)
    assert converted(config, f"txt:{faulty.bucket.address}").kept == 1
    assert faulty.way.count("GET", "prefix=sub%2F") == 3
    assert faulty.way.count("HEAD") == 0


Killed = Callable[[], None]


@pytest.mark.parametrize("form", ["txt", "imagefolder"])
def test_a_kill_between_the_put_and_its_note(
    config: JobConfig, run: Run, faulty: FaultyBucket, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Objects that are there are known as batchcap's, and are not put again; what did not come is put."""
    run(config)
    wanted = f"{form}:{faulty.bucket.address}/x"
    real = uploads.Uploads._sent

    def killed_after(several: object) -> object:
        real(several)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    def killed_before(several: object) -> object:
        raise KeyboardInterrupt

    for settings in ({}, {"verdicts": ("ok", "truncated"), "existing": Existing.SKIP}):
        for killed in (killed_before, killed_after):
            with monkeypatch.context() as patch:
                patch.setattr(uploads.Uploads, "_sent", staticmethod(killed))
                with pytest.raises(KeyboardInterrupt):
                    converted(config, wanted, **settings)
        assert converted(config, wanted, **settings).kept == 0
    assert max(names_put(faulty).values()) <= 2  # the card and the metadata are put with other contents later
    assert len(faulty.bucket.objects("x/")) == {"txt": 4, "imagefolder": 7}[form]


def names_put(faulty: FaultyBucket) -> dict[str, int]:
    names = [path for method, path in faulty.way.seen if method == "PUT"]
    return {name: names.count(name) for name in names}


def test_errors_are_ours(config: JobConfig, run: Run, faulty: FaultyBucket) -> None:
    """Access that is taken away after the check."""
    run(config)
    faulty.way.happens("refuse", 0)
    for form in ("txt", "jsonl", "webdataset"):
        with pytest.raises(BatchcapError, match=r"can't write to .*access is denied"):
            converted(config, f"{form}:{faulty.bucket.address}/{form}")
    assert staged(config) == []


def remote_job(config: JobConfig, bucket: Bucket, tmp_path: Path) -> JobConfig:
    """The same images in a bucket."""
    for name, content in tree(tmp_path / "in").items():
        bucket.put(f"in/{name}", content)
    return replace(config, input=replace(config.input, inputs=(f"{bucket.address}/in",), allow_remote=True))


def test_beside_images_at_an_address(config: JobConfig, run: Run, bucket: Bucket, tmp_path: Path) -> None:
    """While the job runs, and later; with the images that are fetched, a dataset here."""
    job = remote_job(config, bucket, tmp_path)
    bucket.put("in/a.txt", b"mine")
    run(replace(job, outputs=OutputsConfig(also=("txt",))))
    texts = {name: text for name, text in bucket.objects("in/").items() if name.endswith(".txt")}
    assert texts == {f"in/{name}": text for name, text in CAPTIONS.items()} | {"in/a.txt": b"mine"}
    assert converted(job, "json").to_text().startswith("json: 3 captions in 3 files beside the images")
    assert len(bucket.objects("in/")) == 5 + 3 + 3
    assert converted(job, f"webdataset:{tmp_path / 'tars'}").captions == 3
    assert converted(job, f"imagefolder:{bucket.address}/out").captions == 3
    assert [path.name for path in Path().glob("s3:*")] == []


@pytest.mark.parametrize("form", ["txt", "imagefolder"])
def test_inputs_are_not_fetched_unasked(config: JobConfig, run: Run, bucket: Bucket, tmp_path: Path, form: str) -> None:
    job = remote_job(config, bucket, tmp_path)
    run(job)
    with pytest.raises(UsageError, match=r"has some at addresses \(s3://.*give --allow-remote"):
        convert(Path(job.output), [form], OutputsConfig())
    (written,) = convert(Path(job.output), ["jsonl"], OutputsConfig())
    assert written.captions == 3


def test_beside_images_of_a_web_server(config: JobConfig) -> None:
    from batchcap.outputs.names import beside  # noqa: PLC0415

    assert beside(FileAt("https:/example.com/a.jpg"), full_names=False) is None


def test_without_addresses_no_client_is_loaded(config: JobConfig, run: Run) -> None:
    run(replace(config, outputs=OutputsConfig(also=("txt", "webdataset"))))
    words = ["convert", config.output, "--to", "jsonl", "--to", "imagefolder"]
    program = (
        "import sys; from batchcap.cli import main\n"
        f"sys.argv[1:] = {words!r}\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(sorted({'fsspec', 's3fs', 'gcsfs', 'aiohttp', 'botocore'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_images_that_can_not_be_fetched_now(config: JobConfig, run: Run, faulty: FaultyBucket, tmp_path: Path) -> None:
    """They are not taken for images that are gone, and come when their server is back."""
    job = remote_job(config, faulty.bucket, tmp_path)
    run(job)
    faulty.way.happens("slow_down", 0, "GET", "b.jpg")
    written = converted(job, f"imagefolder:{tmp_path / 'birds'}")
    assert (written.captions, written.unreachable, written.changed) == (2, 1, 0)
    with pytest.raises(NetworkError, match="1 not written, since the servers of their images do not answer"):
        run(replace(job, outputs=OutputsConfig(also=("webdataset",))))
    faulty.way.heals()
    assert converted(job, f"imagefolder:{tmp_path / 'birds'}").captions == 3
    assert run(replace(job, outputs=OutputsConfig(also=("webdataset",)))).exit_code == ExitCode.COMPLETE
