"""Owns the Hugging Face imagefolder: images, and one metadata.jsonl that says which caption is whose.

Images are called by numbers: `datasets` takes every file with a word such as `test` or `val` in its name for a part of
another split. What an image was called stands in the column `id`.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from batchcap.config import Existing, FolderImages, OutputsConfig
from batchcap.core.address import address_of
from batchcap.core.atomic import TEMPORARY_SUFFIX, remove_leftovers, storage_error, sync, write_many
from batchcap.core.errors import UsageError
from batchcap.core.sources import FileAt
from batchcap.core.text import shown_name
from batchcap.inputs.columns import shown
from batchcap.outputs.card import Card
from batchcap.outputs.folders import Made, PartFolder
from batchcap.outputs.form import FinishedPart, Form, Job, Written
from batchcap.outputs.lists import plain, plain_rows
from batchcap.outputs.owned import is_foreign, owned_file
from batchcap.outputs.pairs import CaptionedRows, Pair, dataset_columns

log = logging.getLogger(__name__)

METADATA = "metadata.jsonl"
_METADATA_NAMES = ("metadata.csv", METADATA, "metadata.parquet")
_IMAGE = "image"  # the column that `datasets` makes of `file_name`
# Words and what may stand around them (`datasets.data_files`).
_SPLIT_WORD = re.compile(
    r"(?<![^-._ 0-9/])(train|training|validation|valid|dev|val|test|testing|eval|evaluation)(?![^-._ 0-9/])"
)
_MAX_HELD_BYTES, _MAX_HELD_IMAGES = 64 << 20, 500


class ImageFolder(PartFolder):
    """A folder with images of its own, linked or copied."""

    name = "imagefolder"
    suffix = "-imagefolder"

    @classmethod
    def variant(cls, config: OutputsConfig) -> type[Form]:
        """With `--folder-images inplace` there are no images of its own."""
        return InputFolder if config.folder_images is FolderImages.INPLACE else cls

    def settings(self) -> list[object]:
        """Also how the images come into the folder."""
        return [*super().settings(), self.config.folder_images]

    def check(self, image_ids: Callable[[], Iterable[tuple[str, Path]]]) -> None:
        """Refuse also a folder with other metadata: of two metadata files `datasets` reads neither."""
        super().check(image_ids)
        if self.staged is None:
            require_no_metadata([self.path], METADATA)
            return
        for name in _METADATA_NAMES:
            if name != METADATA and self.staged.found(name) is not None:
                raise _other_metadata(self.where / name)

    def make(self, part: FinishedPart, done: Written) -> Made:
        """Link or copy the images of a part into a folder of their own."""
        folder = self.path / "images" / f"{part.shard.seq:05d}"
        rows = CaptionedRows(part, self.job.prompts, self.config.verdicts)
        images = _ImageWriter(folder, links=self.config.folder_images is FolderImages.LINK)
        if rows.offsets:
            self.make_folder(folder)
            remove_leftovers(folder)
        names, offsets = [], []
        for pair in rows.pairs(done):
            path = folder / f"{pair.row.index:08d}{pair.suffix}"
            images.add(path, pair)
            names.append(path.relative_to(self.path).as_posix())
            offsets.append(rows.offsets[pair.place])
        images.flush()
        done.files = len(names)
        return Made(done, tuple(names), tuple(offsets))

    def conclude(self, parts: Sequence[FinishedPart], total: Written) -> None:
        """Write metadata.jsonl, and the dataset card."""
        columns: list[str] = []
        rows = 0
        with (
            owned_file(self.job.ledger, self.path / METADATA) as temporary,
            temporary.open("w", encoding="utf-8", errors="replace", newline="\n") as file,
        ):
            for part in parts:
                made = self.made_of(part)
                rows += len(made.files)
                self.look_at(made.files)
                for record in self._records(part, made):
                    columns = columns or list(record)
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
        total.files += 1
        card = Card(self.job, self.config, parts, total)
        card.write(self.path, rows, self.data_files(), [_IMAGE, *columns[1:]])

    def look_at(self, names: Iterable[str]) -> None:
        """Look at the images of a part, before `data_files` is asked."""

    def data_files(self) -> list[str]:
        """Patterns of the files that `datasets` is to read."""
        return [METADATA, "images/**"]

    def _records(self, part: FinishedPart, made: Made) -> Iterator[dict[str, Any]]:
        rows = CaptionedRows(part, self.job.prompts, self.config.verdicts)
        places = {offset: place for place, offset in enumerate(rows.offsets)}
        table = dataset_columns(rows.table, self.job.prompts, (_IMAGE,), has_verdicts=self.config.verdicts != ("ok",))
        table = _without_file_names(table).take(pa.array([places[offset] for offset in made.rows], pa.int64()))
        names = iter(made.files)
        for record in plain_rows(table):
            yield {"file_name": next(names), **record}


class InputFolder(ImageFolder):
    """The input folder with its images where they are, which gets a metadata.jsonl."""

    def __init__(self, job: Job, where: Path | None, config: OutputsConfig) -> None:
        super().__init__(job, where, config)
        self._suffixes = set[str]()
        self._odd_name = ""

    @property
    def place(self) -> Path | None:
        """None: the images of the input are there."""
        return None

    def check(self, image_ids: Callable[[], Iterable[tuple[str, Path]]]) -> None:
        """Refuse images that are not all below one folder, and metadata of somebody else."""
        roots, folders = set[str](), set[str]()
        if self.staged is not None:
            raise UsageError(
                f"--folder-images inplace writes beside images of this machine, not to {shown(self.where)}: choose "
                "--folder-images copy"
            )
        for name, path in image_ids():
            if address_of(path) is not None:
                raise UsageError(
                    f"--folder-images inplace writes beside images of this machine, and {shown(path)} is not there: "
                    "choose --folder-images copy"
                )
            folders.add(os.path.dirname(path))  # noqa: PTH120 - of a million images
            roots.add(_root_of(name, path))
        if self.given_where is not None:
            roots = {os.path.normpath(self.given_where.absolute())}
        if len(roots) != 1:
            raise UsageError(
                "--folder-images inplace needs all images in one input folder: name the folder above all of them "
                f"({self.name}:FOLDER), or choose --folder-images link or copy"
            )
        root = Path(roots.pop())
        outside = next((one for one in sorted(folders) if root not in (Path(one), *Path(one).parents)), None)
        if outside is not None:
            raise UsageError(
                f"--folder-images inplace needs all images below {shown_name(str(root))}, and some are in "
                f"{shown_name(outside)}: choose --folder-images link or copy"
            )
        if not root.is_dir():
            raise UsageError(
                f"there is no folder {shown_name(str(root))}: put it back, or choose --folder-images link or copy"
            )
        self.path = self.where = root
        self._require_own_metadata()
        require_no_metadata({root, *map(Path, folders)}, METADATA, root)

    def _require_own_metadata(self) -> None:
        path = self.path / METADATA
        if self.config.existing is not Existing.REPLACE and is_foreign(self.job.ledger, path):
            raise UsageError(
                f"{shown_name(str(path))} is there already, and batchcap did not write it as it is now: move it away, "
                "or choose --existing replace, or --folder-images link or copy"
            )

    def begin(self) -> None:
        """Look again for metadata of somebody else; the folder stays somebody else's."""
        self._require_own_metadata()

    def make(self, part: FinishedPart, done: Written) -> Made:
        """Note the names of the images of a part."""
        rows = CaptionedRows(part, self.job.prompts, self.config.verdicts)
        names, offsets = [], []
        for pair in rows.pairs(done):
            name = self._name_of(pair)
            if name is None:
                done.captions -= rows.captions[pair.place]
                done.unplaced += rows.captions[pair.place]
            else:
                names.append(name)
                offsets.append(rows.offsets[pair.place])
        return Made(done, tuple(names), tuple(offsets))

    def _name_of(self, pair: Pair) -> str | None:
        """An image's path inside the folder; None where it is no file of its own there."""
        image = pair.row.image
        if not isinstance(image, FileAt) or image.offset or image.size is not None:
            return None
        path = Path(os.path.normpath(image.path))
        if self.path not in path.parents:
            return None
        name = path.relative_to(self.path).as_posix()
        is_text = os.fsencode(name).decode(errors="replace") == name
        return name if is_text and "://" not in name and "\\" not in name else None

    def remove(self, names: Iterable[str]) -> None:
        """Remove nothing: the images are somebody else's."""

    def conclude(self, parts: Sequence[FinishedPart], total: Written) -> None:
        """Say also which names `datasets` would take for those of splits."""
        self._suffixes, self._odd_name = set(), ""
        super().conclude(parts, total)
        if self._odd_name:
            log.warning(
                'load_dataset("imagefolder", data_dir=…) takes names such as %s for those of another split and leaves '
                "out the rest: open %s itself with load_dataset, which reads its README.md, or choose "
                "--folder-images link",
                shown_name(self._odd_name),
                shown_name(str(self.path)),
            )

    def look_at(self, names: Iterable[str]) -> None:
        """Note their extensions, and a name that is taken for a split's."""
        for name in names:
            self._suffixes.add(PurePosixPath(name).suffix)
            if not self._odd_name and _SPLIT_WORD.search(name):
                self._odd_name = name

    def data_files(self) -> list[str]:
        """Images by their extensions: other files may lie among them."""
        return [METADATA, *(f"**/*{suffix}" for suffix in sorted(self._suffixes) if suffix)]


def _root_of(name: str, path: Path) -> str:
    """The input folder that an image was found in: ids are relative to it."""
    return os.fspath(path).removesuffix(f"/{name}") or os.sep


def require_no_metadata(folders: Iterable[Path], but: str, root: Path | None = None) -> None:
    """Refuse metadata files that `datasets` would find beside ours.

    Args:
        folders: where they are looked for.
        but: the name that is allowed.
        root: the folder that it is allowed in; None: in all.

    Raises:
        UsageError: there is one.
    """
    for folder in folders:
        for name in _METADATA_NAMES:
            is_ours = name == but and root in (None, folder)
            if not is_ours and os.path.lexists(folder / name):
                raise _other_metadata(folder / name)


def _other_metadata(path: Path) -> UsageError:
    return UsageError(
        f"{shown(path)} is there already, and `datasets` would read it beside the {METADATA} of batchcap: move it away"
    )


def _without_file_names(table: pa.Table) -> pa.Table:
    """The table without names that `datasets` would take for those of images, also inside of values."""
    for place, field in enumerate(table.schema):
        if any(_is_file_name(name) for name in _names_inside(field.type)):
            texts = [None if one is None else json.dumps(plain(one)) for one in table.column(place).to_pylist()]
            table = table.set_column(place, field.name, pa.array(texts, pa.string()))
    names: list[str] = []
    for name in table.column_names:
        new = name.replace("file_name", "filename") if _is_file_name(name) else name
        while new in names or (new != name and new in table.column_names):
            new += "_"
        names.append(new)
    return table.rename_columns(names)


def _is_file_name(name: str) -> bool:
    return name.endswith(("file_name", "file_names"))


def _names_inside(kind: pa.DataType) -> Iterator[str]:
    for number in range(kind.num_fields if pa.types.is_nested(kind) else 0):
        field = kind.field(number)
        yield field.name
        yield from _names_inside(field.type)


class _ImageWriter:
    """Images of one folder, written some at a time.

    Args:
        folder: which is there.
        links: whether they are hard links to the originals, where that is possible.
    """

    def __init__(self, folder: Path, *, links: bool) -> None:
        self._folder = folder
        self._links = links
        self._held: dict[Path, bytes] = {}
        self._held_bytes = 0

    def add(self, path: Path, pair: Pair) -> None:
        """Write an image, now or with the next `flush`."""
        image = pair.row.image
        is_file = isinstance(image, FileAt) and not image.offset and image.size is None
        if self._links and is_file and isinstance(image, FileAt) and self._link(Path(image.path), path):
            return
        self._held[path] = pair.encoded
        self._held_bytes += len(pair.encoded)
        if self._held_bytes >= _MAX_HELD_BYTES or len(self._held) >= _MAX_HELD_IMAGES:
            self._write_held()

    def flush(self) -> None:
        """All images are there, and stay there if the power fails."""
        self._write_held()
        try:
            if self._folder.is_dir():
                sync(self._folder)
        except OSError as error:
            raise storage_error(self._folder, error) from error

    def _write_held(self) -> None:
        write_many(self._held)
        self._held, self._held_bytes = {}, 0

    @staticmethod
    def _link(original: Path, path: Path) -> bool:
        temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
        try:
            temporary.unlink(missing_ok=True)
            temporary.hardlink_to(original.resolve())
            temporary.replace(path)
        except OSError:  # another disk, a file system without links, a file that may not be linked
            return False
        finally:
            with suppress(OSError):  # where the two are one file, nothing is renamed
                temporary.unlink(missing_ok=True)
        return True
