"""Owns caption files of single images: which are written, kept or extended, whoever's they were before."""

import json
import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

from batchcap.config import Existing, OutputsConfig
from batchcap.core.address import address_of
from batchcap.core.errors import UsageError
from batchcap.core.records import CaptionRow
from batchcap.core.sources import ImageRef
from batchcap.inputs.columns import shown
from batchcap.inputs.storage import shown_path
from batchcap.outputs.files import MAX_BYTES, FileNow, Files
from batchcap.outputs.form import BESIDE_IMAGES, FinishedPart, Form, Job, Written, wanted_answers
from batchcap.outputs.ledger import Entry, digest_of
from batchcap.outputs.names import in_tree, require_no_collisions, target_of, without_suffix
from batchcap.outputs.places import require_beside
from batchcap.outputs.texts import joined

log = logging.getLogger(__name__)

_SHOWN_EXISTING = 3
_MAX_NAME_BYTES = 255  # of Linux's file systems
_LOOKED_AT_ONCE = 1000
_READ_AT_ONCE = 64


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


@dataclass(frozen=True, slots=True)
class Merged:
    """What becomes of a file.

    Attributes:
        content: what it is to hold; None: it stays as it is.
        kept_texts: how many texts of others stay in the place of ours.
        texts: digests of our texts in it, where others write such files, too.
    """

    content: bytes | None
    kept_texts: int = 0
    texts: frozenset[str] = frozenset()


class Sidecars(Form):
    """A form with files of its own for each image.

    Attributes:
        suffix: of the files.
        is_shared: whether others write such files, too, so that what they have in them stays there.
    """

    is_incremental = True
    suffix: str
    is_shared: ClassVar[bool] = False

    def __init__(self, job: Job, where: Path | None, config: OutputsConfig) -> None:
        super().__init__(job, where, config)
        self.files = Files(job.uploads)
        place = os.fsencode(where).hex() if where else ""
        self._target = json.dumps(
            [self.name, place, str(config.existing), config.verdicts, config.full_names, config.max_alt_letters]
        )

    @property
    def reads_inputs(self) -> bool:
        """For where the images are."""
        return self.given_where is None

    @abstractmethod
    def contents(
        self, part: FinishedPart, row: CaptionRow, answers: list[tuple[str, str]]
    ) -> Iterator[tuple[str, bytes, int]]:
        """The files of a row with captions: what its name ends with, its content, and its number of captions."""

    def together(self, before: bytes, content: bytes) -> bytes:
        """The content of a file in which somebody else had something before, where the two are to be joined."""
        old, new = (one.decode(errors="surrogateescape") for one in (before, content))
        return joined(old, new, self.config.existing).encode(errors="surrogateescape")

    def merged(self, before: bytes | None, sidecar: Sidecar, own: frozenset[str]) -> Merged:  # noqa: ARG002
        """What becomes of a file, as `--existing` says.

        Args:
            before: what somebody else had in it; None: nothing.
            sidecar: what it is to hold.
            own: digests of the texts in it that are not of somebody else, but earlier ones of ours.
        """
        policy = self.config.existing
        if before is None or policy is Existing.REPLACE or before == sidecar.content:
            return Merged(sidecar.content)
        if policy in (Existing.APPEND, Existing.PREPEND):
            return Merged(self.together(before, sidecar.content))
        self.refuse_if_asked(sidecar.path)
        return Merged(None)

    def paths(self, targets: Sequence[Path], suffix: str) -> list[Path]:
        """The files that a caption goes into.

        Args:
            targets: their names without the new extension; in the order of `namings`.
            suffix: what the names end with.
        """
        return [target.with_name(target.name + suffix) for target in targets]

    def namings(self) -> tuple[bool, ...]:
        """Whether names keep the image's extension; more than one where either is looked for, the usual one first."""
        return (self.config.full_names,)

    def refuse_if_asked(self, path: Path) -> None:
        """Stop at a file of somebody else, with `--existing fail`."""
        if self.config.existing is Existing.FAIL:
            self._require_none(1, [shown(path)])

    def check(self, image_ids: Callable[[], Iterable[tuple[str, Path]]]) -> None:
        """Refuse images whose files would have one name, and, with `--existing fail`, files that are there."""

        def targets() -> Iterator[tuple[str, Path]]:
            for name, path in image_ids():
                yield name, self._place(name, path, full_names=self.namings()[0])

        self._require_places(image_ids)
        require_no_collisions(targets)
        if self.config.existing is not Existing.FAIL:
            return
        count, examples = 0, list[str]()
        images = iter(image_ids())
        while several := list(islice(images, _LOOKED_AT_ONCE)):
            paths = list(self._paths_of(several))
            self.files.prepare(paths)
            for path in filter(self._is_foreign, paths):
                count += 1
                if count <= _SHOWN_EXISTING:
                    examples.append(shown(path))
        self._require_none(count, examples)

    def _paths_of(self, images: Iterable[tuple[str, Path]]) -> Iterator[Path]:
        for name, image in images:
            places = [self._place(name, image, full_names=one) for one in self.namings()]
            for suffix in self._suffixes():
                yield from self.paths(places, suffix)

    def _require_places(self, image_ids: Callable[[], Iterable[tuple[str, Path]]]) -> None:
        """Refuse places that can't be written to: the address that was named, or folders of images here and there."""
        if self.given_where is not None:
            address = address_of(self.given_where)
            if address is not None:
                self.job.uploads.require_place(address)
            return
        require_beside(self.name, (image for _name, image in image_ids()), self.job.uploads)

    def _is_foreign(self, path: Path) -> bool:
        return self.files.is_there(path) and not self.job.ledger.entries([os.fsencode(path)])

    def _place(self, name: str, path: Path, *, full_names: bool) -> Path:
        if self.given_where is not None:
            return in_tree(name, self.given_where, full_names=full_names)
        return path if full_names else path.with_name(without_suffix(path.name))

    def _suffixes(self) -> list[str]:
        return [f".{name}{self.suffix}" if name else self.suffix for name in self.job.prompts]

    def _require_none(self, count: int, examples: list[str]) -> None:
        if count:
            more = count - len(examples)
            raise UsageError(
                f"{count} caption files are there already, and --existing fail was asked for: "
                f"{', '.join(examples)}{f', and {more} more' if more > 0 else ''}. Move them away, or "
                "choose --existing skip, replace, append or prepend"
            )

    def write(self, parts: Iterable[FinishedPart], *, skips_known: bool = False) -> Written:
        """Write the files of parts."""
        total = Written(self.name, BESIDE_IMAGES if self.given_where is None else f"in {shown_path(self.given_where)}")
        for part in parts:
            known = self.job.ledger.part(self._target, part.shard.seq) if skips_known else None
            stamp = part.stamp
            before = Written.of_json(known[1]) if known is not None and known[0] == stamp else None
            # A file that somebody has removed is written again, and so is one in the place of somebody's that is gone.
            if before is not None and not before.kept and self._are_there(part):
                done = before
            else:
                done = self._write_part(part)
                self.job.ledger.note_part(self._target, part.shard.seq, stamp, done.to_json())
            total.add(done)
        return total

    def _are_there(self, part: FinishedPart) -> bool:
        """Whether what was written of a part is still there."""
        paths = [Path(os.fsdecode(path)) for path in self.job.ledger.paths_of(*part.shard.span)]
        ours = [path for path in paths if path.name.endswith(self.suffix)]
        if self.given_where is not None:
            ours = [path for path in ours if path.is_relative_to(self.given_where)]
        self.files.prepare(ours)
        return all(map(self.files.is_there, ours))

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
            found = [target_of(row, images.get(index), self.given_where, full_names=one) for one in self.namings()]
            targets = [target for target in found if target is not None]
            if not targets:
                done.unplaced += len(answers)
                continue
            for suffix, content, captions in self.contents(part, row, answers):
                for number, path in enumerate(self.paths(targets, suffix)):
                    if len(os.fsencode(path.name)) > _MAX_NAME_BYTES:
                        done.too_long += 0 if number else captions
                        continue
                    sidecar = Sidecar(path, index, content, 0 if number else captions)
                    if wanted.setdefault(os.fsencode(path), sidecar) is not sidecar:
                        done.collisions += sidecar.captions
        self._write_files(wanted, done)
        return done

    def _write_files(self, wanted: dict[bytes, Sidecar], done: Written) -> None:
        known = self.job.ledger.entries(wanted)
        entries, contents = list[Entry](), dict[Path, bytes]()
        for (key, sidecar), now in self._looked_at(wanted, known):
            entry = known.get(key)
            if entry is not None and entry.row_index != sidecar.row_index:
                done.collisions += sidecar.captions
                continue
            if now is not None and now.is_too_large:
                self._leave(sidecar, entry)
                done.kept += 1
                continue
            if self._stays(entry, now, sidecar):
                done.kept += 1
                continue
            before = self._before(entry, now)
            own = frozenset(entry.texts.split()) if entry is not None else frozenset()
            merged = self.merged(before, sidecar, own)
            done.kept_texts += merged.kept_texts
            if merged.content is None:
                done.kept += 1
                continue
            done.files += 1
            done.captions += sidecar.captions
            texts = " ".join(sorted(own | merged.texts))
            noted = Entry(key, sidecar.row_index, digest_of(merged.content), before, texts)
            if entry is None or (entry.digest, entry.texts) != (noted.digest, noted.texts):
                entries.append(noted)
            if now is None or now.digest != digest_of(merged.content):
                contents[sidecar.path] = merged.content
        self.job.ledger.note(entries)
        self.files.remove_leftovers(sidecar.path for sidecar in wanted.values())
        self.files.write(contents)

    def _leave(self, sidecar: Sidecar, entry: Entry | None) -> None:
        """Say that a file is too large to be kept in the ledger or joined with a caption."""
        if entry is None:
            self.refuse_if_asked(sidecar.path)
        log.warning("%s is left as it is: it is larger than %d MiB", shown(sidecar.path), MAX_BYTES >> 20)

    def _looked_at(
        self, wanted: dict[bytes, Sidecar], known: dict[bytes, Entry]
    ) -> Iterator[tuple[tuple[bytes, Sidecar], FileNow | None]]:
        """The files that are to be, and what is there; some are read at once, and few contents are held."""
        self.files.prepare(sidecar.path for sidecar in wanted.values())
        rest = iter(wanted.items())
        while several := list(islice(rest, _READ_AT_ONCE)):
            found = [(one, self.files.now(one[1].path)) for one in several]
            self.files.fetch(now for (key, one), now in found if now and self._is_read(known.get(key), now, one))
            yield from found

    def _is_read(self, entry: Entry | None, now: FileNow, sidecar: Sidecar) -> bool:
        """Whether it matters what is in a file."""
        if now.is_own or now.is_too_large:
            return False
        keeps = self.config.existing in (Existing.SKIP, Existing.FAIL) and not self.is_shared
        return entry is not None or not keeps or now.size_bytes == len(sidecar.content)

    def _stays(self, entry: Entry | None, now: FileNow | None, sidecar: Sidecar) -> bool:
        """Whether a file is somebody's work that stays as it is, which is known without reading it at an address."""
        policy = self.config.existing
        if now is None or self.is_shared or policy is Existing.REPLACE:
            return False
        if entry is not None:  # changed since batchcap wrote it
            return _is_changed(entry, now)
        if not self._is_read(entry, now, sidecar):
            self.refuse_if_asked(sidecar.path)
            return True
        return False

    def _before(self, entry: Entry | None, now: FileNow | None) -> bytes | None:
        """What somebody else had in a file."""
        if entry is None or _is_changed(entry, now) or (now is None and self.is_shared):
            return None if now is None else now.content
        return entry.before


def _is_changed(entry: Entry, now: FileNow | None) -> bool:
    """Whether a file is neither as batchcap left it, nor as it was before, which a kill may have left."""
    if now is None or now.is_own or now.digest == entry.digest:
        return False
    return entry.before is None or now.digest != digest_of(entry.before)


class TextFiles(Sidecars):
    """A text file for each caption, as trainers of image models read them."""

    name = "txt"
    suffix = ".txt"

    def contents(
        self,
        part: FinishedPart,  # noqa: ARG002
        row: CaptionRow,  # noqa: ARG002
        answers: list[tuple[str, str]],
    ) -> Iterator[tuple[str, bytes, int]]:
        """One for each caption."""
        for name, text in answers:
            yield f".{name}.txt" if name else ".txt", text.encode(errors="replace"), 1


class JsonFiles(Sidecars):
    """A JSON file for each image."""

    name = "json"
    suffix = ".json"

    def _suffixes(self) -> list[str]:
        return [self.suffix]

    def contents(
        self,
        part: FinishedPart,  # noqa: ARG002
        row: CaptionRow,
        answers: list[tuple[str, str]],
    ) -> Iterator[tuple[str, bytes, int]]:
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
