"""Owns forms that are a folder: whose folder it is, who writes it, and which parts are in it already."""

import json
import os
import secrets
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from batchcap.config import Existing, OutputsConfig
from batchcap.core.address import address_of
from batchcap.core.atomic import TEMPORARY_SUFFIX, Leftovers, remove_leftovers, storage_error, write_atomic
from batchcap.core.errors import UsageError
from batchcap.core.jobfolder import DATASET_MARK
from batchcap.core.text import shown_name
from batchcap.inputs.columns import shown
from batchcap.outputs.card import CARD
from batchcap.outputs.form import FinishedPart, Form, Job, Written
from batchcap.outputs.ledger import Entry, digest_of
from batchcap.outputs.staged import Staged, held

_OF_MANY_ROWS = -1


@dataclass(frozen=True, slots=True)
class Made:
    """What was made of a part.

    Attributes:
        written: the counts.
        files: its files, as paths inside the folder.
        rows: where there is a file for each row: the row of each file, from the first row of the part on.
        records: where files hold several rows: how many they hold.
        columns: their columns then.
    """

    written: Written
    files: tuple[str, ...]
    rows: tuple[int, ...] = ()
    records: int = 0
    columns: tuple[str, ...] = ()

    def to_json(self) -> str:
        """For `of_json`."""
        held = {"files": self.files, "rows": self.rows, "records": self.records, "columns": self.columns}
        return json.dumps({"written": self.written.to_json(), **held})

    @classmethod
    def of_json(cls, text: str) -> "Made":
        """What `to_json` gave."""
        stored = json.loads(text)
        columns = tuple(stored.get("columns", ()))  # earlier versions have noted none
        rows, records = tuple(stored["rows"]), stored.get("records", 0)
        return cls(Written.of_json(stored["written"]), tuple(stored["files"]), rows, records, columns)


class Folder(Form):
    """A form that is a folder.

    Attributes:
        suffix: of the folder that is written where nobody names one: beside the job folder, with its name.
        where: the folder, on this machine or at an address.
        path: the folder of this machine that files are made in.
        staged: the way to an address, where the folder is to be there; then `path` is emptied on and on.
    """

    suffix: ClassVar[str]

    def __init__(self, job: Job, where: Path | None, config: OutputsConfig) -> None:
        super().__init__(job, where, config)
        folder = job.folder.path.absolute()
        wanted = where or folder.with_name(folder.name + self.suffix)
        self.where = wanted if address_of(wanted) else Path(os.path.normpath(wanted.absolute()))
        self.staged = Staged.of(job, self.target, self.where, config.existing)
        self.path = self.where if self.staged is None else self.staged.folder

    @property
    def target(self) -> str:
        """What the ledger calls the folder in this form."""
        return json.dumps([self.name, os.fsencode(self.where).hex()])

    @property
    def place(self) -> Path | None:
        """The folder."""
        return self.where

    @property
    def reads_inputs(self) -> bool:
        """For the images, or the tables."""
        return True

    def settings(self) -> list[object]:
        """What decides the files beside the parts, in JSON types."""
        return [self.config.verdicts, self.job.prompts]

    def check(self, image_ids: Callable[[], Iterable[tuple[str, Path]]]) -> None:
        """Refuse a folder of somebody else, and one that images of the job lie in."""
        if self.staged is not None:
            self.staged.require_place()
        self._require_place()
        beginning = f"{self.where}{os.sep}"
        for _name, path in image_ids():
            if os.fspath(path).startswith(beginning):
                raise UsageError(
                    f"images of this job lie in {shown(self.where)}, so {self.name} can't be written there: "
                    f"name another folder ({self.name}:FOLDER)"
                )

    def _require_place(self) -> None:
        if self.staged is not None and self._is_marked():
            return
        is_empty = not self._names_here() if self.staged is None else self.staged.is_empty()
        if not is_empty and self.config.existing is not Existing.REPLACE and not self._is_marked():
            raise UsageError(
                f"the folder {shown(self.where)} is not empty, and this job did not write it as {self.name}: move it "
                f"away, {self._other}, or choose --existing replace, which replaces files of the same names and leaves "
                "all others"
            )

    @property
    def _other(self) -> str:
        return f"name another folder ({self.name}:FOLDER)"

    def _names_here(self) -> list[str]:
        """The names in the folder, where it may be one of ours."""
        name, job_path = shown(self.path), self.job.folder.path.absolute()
        if self.path == job_path or job_path in self.path.parents:
            raise UsageError(f"can't write {self.name} into the job folder {name}: {self._other}")
        try:
            # A kill may have left a mark that is no mark yet.
            return [one for one in os.listdir(self.path) if not _is_unfinished_mark(one)]  # noqa: PTH208 - names
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            raise UsageError(f"{name} is no folder: move it away, or {self._other}") from None
        except OSError as error:
            raise storage_error(self.path, error) from error

    def _is_marked(self) -> bool:
        content = self._own_mark()
        # In another form the job's own folder is another dataset, and one would hold the files of both.
        return content is not None and json.loads(content)["form"] == self.name

    def _own_mark(self) -> bytes | None:
        """The mark of the folder, if this job has made it and it is as it was."""
        if self.staged is not None:
            return self.staged.own_content(DATASET_MARK)
        mark = self.path / DATASET_MARK
        key = os.fsencode(mark)
        entry = self.job.ledger.entries([key]).get(key)
        try:
            content = mark.read_bytes()
        except OSError:
            return None
        return content if entry is not None and digest_of(content) == entry.digest else None

    def begin(self) -> None:
        """Make the folder batchcap's own, where it is not yet."""
        self._require_place()
        if self._is_marked():
            if self.staged is None:
                remove_leftovers(self.path)
            return
        mark = self.path / DATASET_MARK
        content = json.dumps({"form": self.name, "made_by": "batchcap", "key": secrets.token_hex(16)}).encode() + b"\n"
        self.make_folder(self.path)
        if self.staged is None:
            Leftovers().remove([mark])
            self.job.ledger.note([Entry(os.fsencode(mark), _OF_MANY_ROWS, digest_of(content), None)])
        write_atomic(mark, content)
        self.publish([mark.name])

    def make_folder(self, folder: Path) -> None:
        """Make a folder with all above it, where it is not there.

        Raises:
            UsageError: a file has its name.
            StorageError: the file system refused.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"a folder is to be made at {shown_name(str(folder))}: move away what is there") from None
        except OSError as error:
            raise storage_error(folder, error) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder: a run and `convert` may write it at once.

        Raises:
            UsageError: another process writes it, and goes on.
        """
        with held(self.job, self.target, self.where), nullcontext() if self.staged is None else self.staged.opened():
            yield

    def is_there(self, name: str) -> bool:
        """Whether a file that was written is still there, whoever has changed it.

        Raises:
            StorageError, NetworkError: the store can't be asked.
        """
        if self.staged is None:
            return os.path.lexists(self.path / name)
        return self.staged.found(name) is not None

    def publish(self, names: Sequence[str]) -> None:
        """Files are made as they are to be: put them where the folder is, if that is not here.

        Raises:
            UsageError: an object of somebody else is there.
            StorageError, NetworkError: they can't be put.
        """
        if self.staged is not None:
            self.staged.put(names)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files that batchcap has written and that nothing is in any more.

        Raises:
            StorageError, NetworkError: the file system or the store refused.
        """
        if self.staged is not None:
            self.staged.remove(names)
            return
        for name in names:
            path = self.path / name
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(path, error) from error

    def remove_others(self, numbers: set[int]) -> None:
        """Remove the files of parts that the job no longer has: it has started over."""
        ledger = self.job.ledger
        for seq in ledger.parts(self.target):
            known = None if seq in numbers else ledger.part(self.target, seq)
            if known is not None:
                self.remove(Made.of_json(known[1]).files)
                ledger.forget_part(self.target, seq)


def _is_unfinished_mark(name: str) -> bool:
    return name.startswith(f".{DATASET_MARK}.") and name.endswith(TEMPORARY_SUFFIX)


class PartFolder(Folder):
    """A folder with files of its own for each part."""

    is_incremental = True

    @abstractmethod
    def make(self, part: FinishedPart, done: Written) -> Made:
        """Write the files of a part, each of them whole or not at all.

        Args:
            part: the part.
            done: counts of the part, of which `left_out` is known.
        """

    @abstractmethod
    def conclude(self, parts: Sequence[FinishedPart], total: Written) -> None:
        """Write what is about all parts, after them; see `made_of`."""

    def write_part(self, part: FinishedPart) -> None:
        """Write the files of one part."""
        with self.held():
            self.begin()
            self._write_part(part)

    def write(self, parts: Iterable[FinishedPart], *, skips_known: bool = False) -> Written:  # noqa: ARG002
        """Write all finished parts and what is about all of them. A part that is there as it was is not made again."""
        total = Written(self.name, f"in {shown(self.where)}")
        with self.held():
            self.begin()
            written = []
            for part in parts:
                total.add(self._write_part(part))
                written.append(part)
            self.remove_others({part.shard.seq for part in written})
            self.conclude(written, total)
            self._publish_rest(total)
        return total

    def _publish_rest(self, total: Written) -> None:
        """What is about all parts is put last. The card of somebody else stays."""
        if self.staged is None:
            return
        names = sorted(path.name for path in self.path.iterdir() if path.is_file())
        if CARD in names:
            names.remove(CARD)
            if self.staged.is_foreign(CARD):
                total.kept += 1
                total.files -= 1
            else:
                names.append(CARD)
        for name in names:  # in this order, each once the one before it is there
            self.publish([name])

    def made_of(self, part: FinishedPart) -> Made:
        """What was made of a part. Asked for one part at a time: there may be names of a million images in all."""
        known = self.job.ledger.part(self.target, part.shard.seq)
        return Made(Written(self.name, ""), ()) if known is None else Made.of_json(known[1])

    def _write_part(self, part: FinishedPart) -> Written:
        ledger, seq = self.job.ledger, part.shard.seq
        stamp = f"{part.stamp} {json.dumps(self.settings())}"
        known = ledger.part(self.target, seq)
        before = None if known is None else Made.of_json(known[1])
        if before is not None and known is not None and known[0] == stamp:
            # Where images were gone, they may be back.
            is_whole = not before.written.changed and not before.written.unreachable
            if is_whole and all(map(self.is_there, before.files)):
                return before.written
        made = self.make(part, Written(self.name, "", left_out=self.left_out(part.counts)))
        self.publish(made.files)
        if before is not None:
            self.remove(set(before.files) - set(made.files))
        ledger.note_part(self.target, seq, stamp, made.to_json())
        return made.written
