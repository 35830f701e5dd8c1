"""Any archive: its rows are what Python's own readers and a few lines of the documented rule make of it."""

import io
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inputs.archives import Archive, link, tar_bytes, written, zip_bytes

# WebDataset's own rule, where it is written down: base_plus_ext.
RULE = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)
TEXTS = ("txt", "json", "cls", "caption", "text")
FOLDERS = ["", "a/", "a/b.c/", "./", "../", "/x/", "a/.git/", "__MACOSX/", "é/"]
STEMS = ["0", "1", "02", "é", "._0", "a b", "n\nl"]
ENDS = ["", ".jpg", ".JPG", ".png", ".left.jpg", ".1.2.jpg", ".txt", ".json", ".cls", ".CLS", ".npy", ".en.txt", "."]
names = st.builds("".join, st.tuples(st.sampled_from(FOLDERS), st.sampled_from(STEMS), st.sampled_from(ENDS)))
contents = st.sampled_from([b"", b"3", b" -12\n", b"text", b"\xff\xfe", b"x" * 700])
Found = list[tuple[str, bytes | None]]


def parts_of(name: str) -> tuple[str, str] | None:
    found = RULE.fullmatch(name)
    return None if found is None else (found[1], found[2].lower())


def is_image(extension: str) -> bool:
    return extension.rsplit(".", maxsplit=1)[-1] in {"jpg", "png"}


def runs(members: Found) -> Iterator[tuple[str, list[tuple[str, bytes | None]]]]:
    """Keys, and what follows each other with them."""
    last = None
    for name, content in members:
        parts = parts_of(name)
        if parts is None or not (is_image(parts[1]) or parts[1] in TEXTS):
            continue
        if last is None or last[0] != parts[0]:
            if last is not None:
                yield last
            last = (parts[0], [])
        last[1].append((parts[1], content))
    if last is not None:
        yield last


def seen(members: Found) -> Found:
    """The members without hidden ones, and without `./` at their beginning."""
    return [
        (name.removeprefix("./"), content)
        for name, content in members
        if not any(part == "__MACOSX" or (part.strip(".") and part.startswith(".")) for part in name.split("/"))
    ]


def expected(members: Found) -> list[tuple[str, bytes | None, dict[str, bytes | None]]]:
    """Each row's key, image and texts; None for what can't be had."""
    visible = seen(members)
    is_grouped = any(
        any(is_image(end) for end, _content in run) and any(end in TEXTS for end, _content in run)
        for _key, run in runs(visible)
    )
    rows: list[tuple[str, bytes | None, dict[str, bytes | None]]] = []
    if not is_grouped:
        found = [(name, content, {}) for name, content in visible if (parts := parts_of(name)) and is_image(parts[1])]
        rows += found
    else:
        for key, run in runs(visible):
            ends = [end for end, _content in run]
            whole = {end: content if ends.count(end) == 1 or not is_image(end) else None for end, content in run}
            texts = {end: None if ends.count(end) > 1 else content for end, content in run if end in TEXTS}
            first = next((end for end in ends if is_image(end)), None)
            rows.append((key, None if first is None else whole[first], texts))
    before: set[str] = set()
    unique = []
    for key, image, texts in rows:
        unique.append((key, None if key in before else image, texts))
        before.add(key)
    return unique


def check(name: str, content: bytes, members: Found) -> None:
    with TemporaryDirectory() as folder:
        archive = Archive(written(Path(folder) / name, content), keep_columns=("*",))
        found = list(archive.read().items())
        wanted = expected(members)
        assert archive.rows == len(found) == len(wanted)
        columns = archive.columns() if wanted else {}
        for row, ((key, image), (wanted_key, wanted_image, texts)) in enumerate(zip(found, wanted, strict=True)):
            assert key == wanted_key or key.startswith(f"{wanted_key}#")
            assert columns["__key__"][row] == key
            if wanted_image:
                assert image == wanted_image
            else:
                assert isinstance(image, str)
            for column in columns:
                if column != "__key__":
                    assert same(columns[column][row], texts.get(column)), (column, key)


def same(value: str | int | None, content: bytes | None) -> bool:
    if isinstance(value, int):
        return content is not None and int(content) == value
    return (value is None) if content is None or content.startswith(b"\xff") else value == content.decode()


@settings(max_examples=80)
@given(st.lists(st.tuples(names, contents, st.booleans()), max_size=12), st.sampled_from(["a.tar", "a.tgz"]))
def test_any_tar_archive(members: list[tuple[str, bytes, bool]], name: str) -> None:
    made = [link(one) if is_link and not content else (one, content) for one, content, is_link in members]
    content = tar_bytes(made, "w:gz" if name == "a.tgz" else "w")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        found: Found = []
        for member in archive.getmembers():
            file = archive.extractfile(member) if member.isreg() else None
            found.append((member.name, None if file is None else file.read()))
    check(name, content, found)


@settings(max_examples=60)
@given(st.dictionaries(names, contents, max_size=12), st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
def test_any_zip_archive(members: dict[str, bytes], method: int) -> None:
    """As a tar archive that has the members of one sample one after the other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = zip_bytes(members, method)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found: Found = [(info.filename, archive.read(info)) for info in archive.infolist()]
    meant = [(name, data) for name, data in seen(found) if list(runs([(name, data)]))]
    keys = [RULE.fullmatch(name)[1] for name, _content in meant]
    together = [meant[place] for place in sorted(range(len(meant)), key=lambda place: keys.index(keys[place]))]
    is_grouped = any(texts for _key, _image, texts in expected(together))
    check("a.zip", content, together if is_grouped else found)
