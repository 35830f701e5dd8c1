"""What people get wrong: every mistake ends with its exit code and one message, every bad image as one row."""

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from batchcap.model.bundle import Bundle
from batchcap.store.folder import JobFolder
from tests.checkpoints import make_checkpoint
from tests.e2e.command import ONNX, assert_refused, batchcap, read_rows
from tests.inputs.hostile import damage_pages
from tests.inputs.parquets import write_table


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with one good image."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (64, 48), (200, 30, 40)).save(folder / "good.png")
    return folder


def encoded(size: tuple[int, int], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def bomb() -> bytes:
    """A small PNG whose header promises 3.6 thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write_bad_images(folder: Path) -> dict[str, str | None]:
    """Images of every kind of badness among good ones; what becomes of each: None, or the error's kind."""
    contents: dict[str, tuple[bytes, str | None]] = {
        "0-good.png": (encoded((64, 48)), None),
        "GOOD.JPG": (encoded((64, 48), "JPEG"), None),
        "a-png-in-truth.jpg": (encoded((50, 50)), None),
        "bad-exif.jpg": (_with_bad_exif(), None),
        "bomb.png": (bomb(), "too_large"),
        "cut.jpg": (encoded((200, 200), "JPEG")[:3000], "corrupt"),
        "long.png": (encoded((1, 3000)), "bad_shape"),
        "one-pixel.png": (encoded((1, 1)), None),
        "text.jpg": (b"hello", "not_an_image"),
        "z-good.png": (encoded((90, 40)), None),
        "zero.png": (b"", "not_an_image"),
    }
    for name, (content, _kind) in contents.items():
        (folder / name).write_bytes(content)
    expected = {name: kind for name, (_content, kind) in contents.items()}
    (folder / "locked.png").write_bytes(encoded((8, 8)))
    (folder / "locked.png").chmod(0)
    (folder / "nowhere.png").symlink_to("/nowhere/at/all.png")
    (folder / "endless.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "inside.png").write_bytes(encoded((40, 40)))
    special = {"locked.png": "unreadable", "nowhere.png": "missing", "endless.png": "unreadable"}
    return {**expected, **special, "pipe.jpg": "unreadable", "folder.jpg/inside.png": None}


def _with_bad_exif() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    return buffer.getvalue()


def test_a_bad_image_is_a_row_and_the_others_are_captioned(tmp_path: Path, tiny_bundle_int4: Bundle) -> None:
    folder, output = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    expected = write_bad_images(folder)
    command = ("caption", folder, "-o", output, "-m", tiny_bundle_int4.folder, *ONNX, "--max-new-tokens", 4)
    done = batchcap(*command)
    assert done.returncode == 0, done.stderr
    rows = read_rows(output)
    assert {row["id"]: row["error_kind"] for row in rows} == expected
    assert [row["id"] for row in rows] == sorted(expected)
    for row in rows:
        assert row["status"] == ("failed" if row["error_kind"] else "ok")
        assert (row["caption"] is None) == (row["error_message"] is not None) == (row["status"] == "failed")
    # Nobody but us speaks on stderr: no warning of a library, no traceback.
    assert all(line[2:3] == line[5:6] == ":" for line in done.stderr.splitlines()), done.stderr
    failed = sum(kind is not None for kind in expected.values())
    assert f"{len(expected) - failed} captions, {failed} failed" in done.stdout

    # The same again has nothing to do, and still tells by its exit code that too many have failed.
    again = batchcap(*command, "--max-error-rate", 0.1)
    assert again.returncode == 3, again.stderr
    assert "more failures than --max-error-rate 0.1 allows" in again.stdout
    assert read_rows(output) == rows


def test_all_rows_failed(tmp_path: Path, tiny_bundle_int4: Bundle) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_text("no image")
    command = ("caption", tmp_path / "*.png", "-o", tmp_path / "out", "-m", tiny_bundle_int4.folder, *ONNX)
    done = batchcap(*command, "--max-error-rate", 0.99)
    assert done.returncode == 3, done.stderr
    assert "0 captions, 5 failed" in done.stdout
    assert [row["error_kind"] for row in read_rows(tmp_path / "out")] == ["not_an_image"] * 5
    assert json.loads(JobFolder(tmp_path / "out").summary_path.read_text())["exit_code"] == 3


INPUTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a missing path": (lambda folder: None, ("the input", "does not exist: check how")),
    "an empty folder": (
        lambda folder: folder.mkdir(),
        ("no image and no Parquet file in", "name a folder or a pattern that has some"),
    ),
    "a folder without images": (
        lambda folder: (folder.mkdir(), (folder / "a.txt").touch(), (folder / "b").touch()),
        ("2 other files skipped (.txt 1, no extension 1)", "Name a file itself"),
    ),
}
PARQUETS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no column with images": (
        lambda path: pq.write_table(pa.table({"label": [1], "text": ["x"]}), path),
        ("has no column with images; it has label, text", "--image-column"),
    ),
    "several columns with images": (
        lambda path: pq.write_table(pa.table({"left": [b""], "right": [b""]}), path),
        ("several columns that may hold the image (left, right)", "--image-column"),
    ),
    "no Parquet": (lambda path: path.write_text("x" * 100), ("can't read the Parquet file", "mend it or leave it out")),
    "no bytes": (lambda path: path.touch(), ("can't read the Parquet file", "mend it or leave it out")),
    "no rows": (
        lambda path: pq.write_table(pa.table({"image": pa.array([], pa.binary())}), path),
        ("no Parquet file in", "has a row: name files that have some"),
    ),
}


@pytest.mark.parametrize("case", [*INPUTS, *PARQUETS])
def test_inputs_refused(tmp_path: Path, tiny_bundle_int4: Bundle, case: str) -> None:
    make, parts = {**INPUTS, **PARQUETS}[case]
    path = tmp_path / ("in.parquet" if case in PARQUETS else "in")
    make(path)
    done = batchcap("caption", path, "-o", tmp_path / "out", "-m", tiny_bundle_int4.folder)
    assert_refused(done, str(path), *parts)
    assert not read_rows(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "part"), [("a.7z", "unpack it and give the folder"), ("a.orc", "convert it to Parquet")]
)
def test_archives_and_other_tables_are_refused(tmp_path: Path, tiny_bundle_int4: Bundle, name: str, part: str) -> None:
    (tmp_path / name).write_bytes(bytes(1024))
    done = batchcap("caption", tmp_path / name, "-o", tmp_path / "out", "-m", tiny_bundle_int4.folder)
    assert_refused(done, str(tmp_path / name), part)
    assert not (tmp_path / "out").exists()


def test_addresses_are_refused(tmp_path: Path, images: Path, tiny_bundle_int4: Bundle) -> None:
    address = "https://example.org/a.parquet"
    command = ("caption", images, address, "-o", tmp_path / "out", "-m", tiny_bundle_int4.folder)
    assert_refused(batchcap(*command), "batchcap fetches nothing unless it is told to", address)
    job = tmp_path / "job.toml"
    job.write_text(f'output = "out"\n[input]\ninputs = ["{address}"]\n')
    assert_refused(batchcap("run", job), "batchcap fetches nothing unless it is told to", address)
    assert not (tmp_path / "out").exists()


def test_a_damaged_row_group_is_failed_rows_and_the_others_are_captioned(
    tmp_path: Path, images: Path, tiny_bundle_int4: Bundle
) -> None:
    cells = pa.array([encoded((40 + row, 40)) for row in range(9)])
    columns = {"image": cells, "label": [f"label {row}" for row in range(9)]}
    path = write_table(tmp_path / "in.parquet", columns, row_group_size=3)
    write_table(tmp_path / "paths.parquet", {"path": ["good.png", "../in.parquet", "https://example.org/a.png"]})
    damage_pages(path, group=1, column=0)
    damage_pages(path, group=2, column=1)
    command = ("caption", tmp_path / "*.parquet", "-o", tmp_path / "out", "-m", tiny_bundle_int4.folder, *ONNX)
    done = batchcap(*command, "--max-new-tokens", 4, "--keep-columns", "", "--image-root", images)
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "out")
    kinds = [*[None] * 3, *["unreadable"] * 3, *[None] * 4, *["refused"] * 2]
    assert [row["error_kind"] for row in rows] == kinds
    assert {row["error_message"] for row in rows[3:6]} == {rows[3]["error_message"]}
    assert f"row group 1 of {path} is damaged" in str(rows[3]["error_message"])

    with_labels = batchcap("caption", path, *command[2:], "-o", tmp_path / "2", "--keep-columns", "label")
    assert with_labels.returncode == 0, with_labels.stderr
    rows = read_rows(tmp_path / "2")
    assert [row["error_kind"] for row in rows] == kinds[:9]
    assert [row["label"] for row in rows] == [*columns["label"][:6], *[None] * 3]
    assert f"row group 2 of {path} is damaged" in with_labels.stderr
    assert "Traceback" not in with_labels.stderr


def _lose(bundle: Path) -> None:
    (bundle / "embeddings.npy").unlink()


def _change_a_byte(bundle: Path) -> None:
    path = bundle / "vision" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _cut_description(bundle: Path) -> None:
    text = (bundle / "bundle.json").read_text()
    (bundle / "bundle.json").write_text(text[: len(text) // 2])


def _later_format(bundle: Path) -> None:
    content = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**content, "format_version": 99}))


def _empty(bundle: Path) -> None:
    shutil.rmtree(bundle)
    bundle.mkdir()


BUNDLES = {
    _lose: ("embeddings.npy is missing", "export it again with `batchcap export"),
    _change_a_byte: ("its checksum differs", "export it again with `batchcap export"),
    _cut_description: ("can't read", "bundle.json", "export it again with `batchcap export"),
    _later_format: ("has bundle format 99", "export it again with `batchcap export"),
    _empty: ("is not a bundle (no bundle.json)", "make one with `batchcap export"),
    shutil.rmtree: ("there is no bundle at", "make one with `batchcap export"),
}


@pytest.mark.parametrize("damage", BUNDLES, ids=lambda damage: damage.__name__)
def test_bundles_refused(
    tmp_path: Path, images: Path, tiny_bundle_int4: Bundle, damage: Callable[[Path], None]
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle_int4.folder, tmp_path / "bundle"))
    damage(bundle)
    assert_refused(batchcap("caption", images, "-o", tmp_path / "out", "-m", bundle), *BUNDLES[damage])
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_as_model_is_to_be_exported(tmp_path: Path, images: Path, tiny_checkpoint: Path) -> None:
    done = batchcap("caption", images, "-o", tmp_path / "out", "-m", tiny_checkpoint)
    assert_refused(done, f"batchcap export {tiny_checkpoint} --output ")


def test_outputs_refused(tmp_path: Path, images: Path, tiny_bundle_int4: Bundle) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir(mode=0o500)
    command = ("caption", images, "-m", tiny_bundle_int4.folder, "-o")
    assert_refused(batchcap(*command, tmp_path / "file"), "is a file, not a folder")
    assert_refused(batchcap(*command, images), "holds other files: choose an empty or new folder")
    assert_refused(
        batchcap(*command, tmp_path / "locked" / "out"),
        "you may not write in",
        "change the permissions or choose another",
    )
    assert_refused(batchcap(*command, ""), "--output must not be an empty text")
    assert list((tmp_path / "locked").iterdir()) == []


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        ("/proc/x/out", ("no folder can be created in /proc",)),
        ("/dev/null/x", ("/dev/null is a device, not a folder",)),
        ("FOLDER/file/x/y", ("file is a file, not a folder",)),
        ("FOLDER/link", ("link is a link to", "which does not exist")),
        ("FOLDER/link/inside", ("link is a link to", "which does not exist")),
        ("FOLDER/loop", ("loop is a link to", "which does not exist")),
        (f"FOLDER/{'x' * 300}", ("is too long: choose a shorter --output",)),
        ("FOLDER/locked", ("you may not write in", "change the permissions")),
        ("FOLDER/locked/a/b", ("you may not write in", "change the permissions")),
    ],
)
def test_places_where_no_job_folder_can_be(tmp_path: Path, images: Path, output: str, parts: tuple[str, ...]) -> None:
    """Told before the model is looked for."""
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir(mode=0o500)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = sorted(tmp_path.rglob("*"))
    done = batchcap("caption", images, "-m", "no-such", "-o", output.replace("FOLDER", str(tmp_path)))
    assert_refused(done, "can't make the job folder", "--output", *parts)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("exists", [False, True])
def test_a_refused_command_leaves_no_new_folder(
    tmp_path: Path, images: Path, tiny_bundle_int4: Bundle, exists: bool
) -> None:
    if exists:
        (tmp_path / "a" / "b").mkdir(parents=True)
    pq.write_table(pa.table({"image": [(images / "good.png").read_bytes()]}), tmp_path / "in.parquet")
    before = sorted(tmp_path.rglob("*"))
    command = ("caption", tmp_path / "in.parquet", "-o", tmp_path / "a" / "b", "-m", tiny_bundle_int4.folder, *ONNX)
    assert_refused(batchcap(*command, "--keep-columns", "nothing"), "nothing")
    assert_refused(batchcap(*command, "--image-column", "nothing"), "nothing")
    assert sorted(tmp_path.rglob("*")) == before
    assert batchcap(*command, "--max-new-tokens", 2).returncode == 0
    assert_refused(batchcap(*command, "--image-column", "nothing"), "nothing", code=5)
    assert len(read_rows(tmp_path / "a" / "b")) == 1


def test_a_mistyped_column_can_be_mended(tmp_path: Path, images: Path, tiny_bundle_int4: Bundle) -> None:
    pq.write_table(pa.table({"image": [(images / "good.png").read_bytes()]}), tmp_path / "in.parquet")
    command = ("caption", tmp_path / "in.parquet", "-o", tmp_path / "out", "-m", tiny_bundle_int4.folder, *ONNX)
    assert_refused(
        batchcap(*command, "--image-column", "imgae"), "no column 'imgae' (--image-column): name one of image"
    )
    too_long = batchcap(*command, "--max-new-tokens", 5000)
    assert_refused(too_long, "--max-new-tokens 5000 need", "lower one of them, or export with a larger --context")
    done = batchcap(*command, "--max-new-tokens", 4)
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in read_rows(tmp_path / "out")] == ["ok"]


def test_an_output_inside_of_its_input_is_no_input(images: Path, tiny_bundle_int4: Bundle) -> None:
    command = ("caption", images, "-o", images / "out", "-m", tiny_bundle_int4.folder, *ONNX, "--max-new-tokens", 4)
    for _run in range(2):
        assert batchcap(*command).returncode == 0
    assert [row["id"] for row in read_rows(images / "out")] == ["good.png"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--bogus",), "No such option: --bogus"),
        (("--slots", "many"), "batchcap: error: --slots must be a whole number, not 'many'"),
        (("--temperature", "hot"), "batchcap: error: --temperature must be a number, not 'hot'"),
        (
            ("--vision-dtype", "fp16"),
            "batchcap: error: --vision-dtype must be one of auto, bf16, fp32, int8, not 'fp16': did you mean 'bf16'?",
        ),
        (("--show", "-1"), "batchcap: error: --show must be at least 0, not -1"),
        (("--slots", "0"), "batchcap: error: --slots must be at least 1, not 0"),
        (("--max-error-rate", "2"), "batchcap: error: --max-error-rate must be at most 1, not 2"),
        (("--image-timeout", "0"), "batchcap: error: --image-timeout must be above 0, not 0"),
        (("--picture-timeout", "0"), "batchcap: error: --image-timeout must be above 0, not 0"),
        (("--temperature", "9"), "batchcap: error: --temperature must be at most 2, not 9"),
        (("--decoder-threads", "100000"), "batchcap: error: --decoder-threads must be at most 1024, not 100000"),
        (("--prompt", ""), "batchcap: error: --prompt must not be empty: write what to ask about each image"),
        (("--prompt", "1=x"), "batchcap: error: --prompt must not be called '1': a name has letters"),
        (("--prompt", "@no-such.txt"), "batchcap: error: --prompt names the file no-such.txt, which does not exist"),
        (("--prompt", "Describe {title}."), "batchcap: error: --prompt has {title} in it, and columns in prompts are"),
    ],
)
def test_options_refused(tmp_path: Path, images: Path, arguments: tuple[str, ...], part: str) -> None:
    done = batchcap("caption", images, "-o", tmp_path / "out", *arguments, COLUMNS="200")
    assert (done.returncode, done.stdout) == (2, "")
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_job_files_refused(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    assert_refused(batchcap("run", job), f"no job file at {job}")
    job.write_text('output = "out"\n[input]\ninputs = ["pictures"]\n[generation]\nmax_tokens = 3\n')
    assert_refused(batchcap("run", job), "unknown key 'max_tokens' in [generation]: did you mean 'max_new_tokens'?")


def test_status_of_what_is_no_job(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        assert_refused(batchcap("status", path), "is not a job folder", "give the --output of a caption job")
    JobFolder(tmp_path / "captions").state_path.mkdir(parents=True)
    assert_refused(batchcap("status", tmp_path / "captoins"), "is not a job folder", "did you mean captions?")
    JobFolder(tmp_path / "begun").state_path.mkdir(parents=True)
    assert_refused(batchcap("status", tmp_path / "begun"), "run the same command again")


def _edit_config(checkpoint: Path, key: str, value: str) -> None:
    content = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**content, key: value}))


def _another_family(checkpoint: Path) -> None:
    _edit_config(checkpoint, "model_type", "llava")


def _mixture_of_experts(checkpoint: Path) -> None:
    _edit_config(checkpoint, "model_type", "qwen3_vl_moe")


def _without_a_shard(checkpoint: Path) -> None:
    sorted(checkpoint.glob("model-*.safetensors"))[0].unlink()


def _cut_weights(checkpoint: Path) -> None:
    path = sorted(checkpoint.glob("model-*.safetensors"))[0]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _without_tokenizer(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()


CHECKPOINTS = {
    shutil.rmtree: ("there is no checkpoint folder at",),
    _another_family: ("of type 'llava'", "batchcap exports dense Qwen3-VL"),
    _mixture_of_experts: ("mixture-of-experts", "batchcap exports dense Qwen3-VL"),
    _without_a_shard: ("is missing: copy the che",),
    _cut_weights: ("is not a complete safetensors file", "copy the checkpoint again"),
    _without_tokenizer: ("tokenizer.json is missing: the checkpoint must have its fast tokenizer",),
}


@pytest.mark.parametrize("damage", CHECKPOINTS, ids=lambda damage: damage.__name__)
def test_checkpoints_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", max_shard_size="1MB")
    damage(checkpoint)
    assert_refused(batchcap("export", checkpoint, "-o", tmp_path / "bundle"), *CHECKPOINTS[damage])
    left = {path.name for path in tmp_path.iterdir()} - {"checkpoint"}
    assert not left, "a refused export leaves nothing behind"


@pytest.mark.parametrize(
    ("name", "folder"), [("job:v2", "job:v2"), ("~no-such-user/x", "~no-such-user/x"), ("~/x", "home/x")]
)
def test_folder_names_that_pyarrow_would_take_for_something_else(
    images: Path, tmp_path: Path, name: str, folder: str, tiny_bundle_int4: Bundle
) -> None:
    (tmp_path / "home").mkdir()
    command = ("caption", images, "--output", name, "--model", tiny_bundle_int4.folder, *ONNX, "--max-new-tokens", 2)
    for _time in range(2):
        done = batchcap(*command, cwd=tmp_path, HOME=str(tmp_path / "home"))
        assert done.returncode == 0, done.stderr
        assert len(read_rows(tmp_path / folder)) == 1
    assert done.stderr == "", "the part is whole: nothing is captioned again"
    assert batchcap("status", name, cwd=tmp_path, HOME=str(tmp_path / "home")).returncode == (
        0 if folder == name else 2
    )
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "home", Path(folder).parts[0]}
