"""Owns caption files of single images: which are written, kept or extended, whoever's they were before."""

import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from batchcap.config import Existing, OutputsConfig
from batchcap.core.atomic import storage_error, write_many
from batchcap.core.errors import UsageError
from batchcap.core.records import CaptionRow
from batchcap.core.sources import ImageRef
from batchcap.core.text import shown_name
from batchcap.outputs.form import FinishedPart, Form, Job, Written, wanted_answers
from batchcap.outputs.ledger import Entry, digest_of
from batchcap.outputs.names import in_tree, require_no_collisions, target_of, without_suffix

_MAX_EXISTING_BYTES = 1 << 24
_SHOWN_EXISTING = 3
_ENDS = (".", "!", "?", "…", ":", ";", "。")


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The file of one row that is to be.

    Attributes:
        path: where.
        row_index: of the row in the job.
        content: without what somebody else has in the file.
        captions: how many captions are in it.
    """

    path: Path
    row_index: int
    content: bytes
    captions: int


class Sidecars(Form):
    """A form with files of its own for each image.

    Attributes:
        suffix: of the files.
    """

    is_incremental = True
    suffix: str

    def __init__(self, job: Job, where: Path | None, config: OutputsConfig) -> None:
        super().__init__(job, where, config)
        place = os.fsencode(where).hex() if where else ""
        self._target = json.dumps([self.name, place, str(config.existing), config.verdicts, config.full_names])

    @abstractmethod
    def contents(self, row: CaptionRow, answers: list[tuple[str, str]]) -> Iterator[tuple[str, bytes, int]]:
        """The files of a row with captions: what its name ends with, its content, and its number of captions."""

    def together(self, before: bytes, content: bytes) -> bytes:
        """The content of a file in which somebody else had something before, where the two are to be joined."""
        old, new = before.rstrip(), content.strip()
        if self.config.existing is Existing.PREPEND:
            old, new = new, old.lstrip()
        if not old or not new:
            return old + new
        return old + (b" " if old.decode(errors="replace").endswith(_ENDS) else b", ") + new

    def check(self, image_ids: Callable[[], Iterable[tuple[str, Path]]]) -> None:
        """Refuse images whose files would have one name, and, with `--existing fail`, files that are there."""

        def targets() -> Iterator[tuple[str, Path]]:
            for name, path in image_ids():
                yield name, self._place(name, path)

        require_no_collisions(targets)
        if self.config.existing is not Existing.FAIL:
            return
        there = []
        for _name, target in targets():
            for suffix in self._suffixes():
                path = target.with_name(target.name + suffix)
                if os.path.lexists(path) and not self.job.ledger.entries([os.fsencode(path)]):
                    there.append(shown_name(str(path)))
        self._require_none(there)

    def _place(self, name: str, path: Path) -> Path:
        if self.given_where is not None:
            return in_tree(name, self.given_where, full_names=self.config.full_names)
        return path if self.config.full_names else path.with_name(without_suffix(path.name))

    def _suffixes(self) -> list[str]:
        return [f".{name}{self.suffix}" if name else self.suffix for name in self.job.prompts]

    def _require_none(self, there: list[str]) -> None:
        if there:
            more = len(there) - _SHOWN_EXISTING
            raise UsageError(
                f"{len(there)} caption files are there already, and --existing fail was asked for: "
                f"{', '.join(there[:_SHOWN_EXISTING])}{f', and {more} more' if more > 0 else ''}. Move them away, or "
                "choose --existing skip, replace, append or prepend"
            )

    def write(self, parts: Iterable[FinishedPart], *, skips_known: bool = False) -> Written:
        """Write the files of parts."""
        total = Written(self.name, "beside the images" if self.given_where is None else f"in {self.given_where}")
        for part in parts:
            known = self.job.ledger.part(self._target, part.shard.seq) if skips_known else None
            stamp = part.stamp
            if known is not None and known[0] == stamp:
                done = Written.of_json(known[1])
            else:
                done = self._write_part(part)
                self.job.ledger.note_part(self._target, part.shard.seq, stamp, done.to_json())
            total.add(done)
        return total

    def _write_part(self, part: FinishedPart) -> Written:
        done = Written(self.name, "", left_out=self.left_out(part.counts))
        images = dict[int, ImageRef | None]()
        if self.given_where is None:
            with suppress(UsageError):  # an input is gone: what is beside its images is gone, too
                images = {row.index: row.image for row in part.images()}
        wanted = dict[bytes, Sidecar]()
        for index, row in enumerate(part.rows, part.shard.first_row):
            answers = wanted_answers(row, self.job.prompts, self.config.verdicts)
            if not answers:
                continue
            target = target_of(row, images.get(index), self.given_where, full_names=self.config.full_names)
            if target is None:
                done.unplaced += len(answers)
                continue
            for suffix, content, captions in self.contents(row, answers):
                path = target.with_name(target.name + suffix)
                key = os.fsencode(path)
                if key in wanted:
                    done.collisions += captions
                else:
                    wanted[key] = Sidecar(path, index, content, captions)
        self._write_files(wanted, done)
        return done

    def _write_files(self, wanted: dict[bytes, Sidecar], done: Written) -> None:
        known = self.job.ledger.entries(wanted)
        entries, contents = list[Entry](), dict[Path, bytes]()
        for key, sidecar in wanted.items():
            entry = known.get(key)
            if entry is not None and entry.row_index != sidecar.row_index:
                done.collisions += sidecar.captions
                continue
            now = _read(sidecar.path)
            final, before = self._final(sidecar, entry, now)
            if final is None:
                done.kept += 1
                continue
            done.files += 1
            done.captions += sidecar.captions
            if entry is None or entry.digest != digest_of(final):
                entries.append(Entry(key, sidecar.row_index, digest_of(final), before))
            if now != final:
                contents[sidecar.path] = final
        self.job.ledger.note(entries)
        for folder in {path.parent for path in contents}:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise storage_error(folder, error) from error
        write_many(contents)

    def _final(self, sidecar: Sidecar, entry: Entry | None, now: bytes | None) -> tuple[bytes | None, bytes | None]:
        """The content of a file, None where it stays as it is, and what was in it before batchcap came."""
        policy = self.config.existing
        if entry is None:
            before = now
        elif now is None or digest_of(now) == entry.digest or now == entry.before:
            before = entry.before  # ours as we left it, or noted and then not written
        elif policy is Existing.REPLACE:
            before = now
        else:
            return None, None  # changed since: it is somebody's work now
        if before is None or policy is Existing.REPLACE or before == sidecar.content:
            return sidecar.content, before
        if policy in (Existing.APPEND, Existing.PREPEND):
            return self.together(before, sidecar.content), before
        if policy is Existing.FAIL:
            self._require_none([shown_name(str(sidecar.path))])
        return None, None


def _read(path: Path) -> bytes | None:
    """A file's content; None where there is none.

    Raises:
        UsageError: something else has its name.
        StorageError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_EXISTING_BYTES + 1)
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise UsageError(f"{shown_name(str(path))} is a folder, where a caption file is to be: move it away") from None
    except OSError as error:
        raise storage_error(path, error) from error
    if len(content) > _MAX_EXISTING_BYTES:
        raise UsageError(f"{shown_name(str(path))} is too large for a caption file: move it away")
    return content


class TextFiles(Sidecars):
    """A text file for each caption, as trainers of image models read them."""

    name = "txt"
    suffix = ".txt"

    def contents(self, row: CaptionRow, answers: list[tuple[str, str]]) -> Iterator[tuple[str, bytes, int]]:  # noqa: ARG002
        """One for each caption."""
        for name, text in answers:
            yield f".{name}.txt" if name else ".txt", text.encode(errors="replace"), 1


class JsonFiles(Sidecars):
    """A JSON file for each image."""

    name = "json"
    suffix = ".json"

    def _suffixes(self) -> list[str]:
        return [self.suffix]

    def contents(self, row: CaptionRow, answers: list[tuple[str, str]]) -> Iterator[tuple[str, bytes, int]]:
        """One."""
        captions = {f"caption_{name}" if name else "caption": text for name, text in answers}
        facts = {"width": row.width, "height": row.height, "image_sha256": row.image_sha256}
        text = json.dumps({"id": row.id, **captions, **facts}, ensure_ascii=False, indent=2) + "\n"
        yield self.suffix, text.encode(errors="replace"), len(answers)

    def together(self, before: bytes, content: bytes) -> bytes:
        """The object with our keys in it.

        Raises:
            UsageError: what was there is no object.
        """
        try:
            old = json.loads(before)
        except ValueError:
            old = None
        if not isinstance(old, dict):
            raise UsageError(
                "a .json file that is there already holds no JSON object: choose --existing skip or replace"
            )
        new = json.loads(content)
        joined = {**new, **old, **new} if self.config.existing is Existing.PREPEND else {**old, **new}
        return (json.dumps(joined, ensure_ascii=False, indent=2) + "\n").encode(errors="replace")
