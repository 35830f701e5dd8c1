"""Owns the question whether a job folder belongs to this job: what decides the captions, stored and compared."""

import json
import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from batchcap.config import DEMO_MODEL, JobConfig
from batchcap.core.errors import NotSameJobError, StorageError, UsageError
from batchcap.core.setting import NEEDED, Setting, all_values
from batchcap.store.folder import JobFolder
from batchcap.store.job_file import read_job_file, write_job_file
from batchcap.store.journal import Journal
from batchcap.store.parts import has_captions

log = logging.getLogger(__name__)

# Characters of a value that a message shows, and how many of them stand before the first difference.
SHOWN_LENGTH = 80
SHOWN_BEFORE = 30

Fingerprint = dict[str, Any]
# Where a file has these, they stand in this order, whatever that of the configuration; what came later follows.
_ORDER = (
    "model",
    "prompt",
    "max-new-tokens",
    "temperature",
    "top-p",
    "top-k",
    "repetition-penalty",
    "seed",
    "loop-stop",
    "max-visual-tokens",
    "vision-backend",
    "vision-dtype",
    "max-image-pixels",
    "image-column",
    "id-column",
    "image-root",
    "keep-columns",
)


def fingerprint_of(config: JobConfig, bundle_id: str, encoder: tuple[str, str]) -> Fingerprint:
    """Everything that decides the words or the columns of the output, after all defaults are known.

    Args:
        config: the job.
        bundle_id: the model.
        encoder: the vision encoder's backend and arithmetic, `auto` resolved.
    """
    resolved = {"model": bundle_id, "vision-backend": encoder[0], "vision-dtype": encoder[1]}
    found = {_name(one): _stored(value) for one, value in all_values(config) if one.decides_caption} | resolved
    return {name: found[name] for name in sorted(found, key=_place)}


def _name(setting: Setting) -> str:
    return setting.key.replace("_", "-")


def _place(name: str) -> int:
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def _stored(value: object) -> object:
    """The value in JSON types."""
    if isinstance(value, dict):
        # Pairs, since the order of the prompts is that of the columns, and JSON objects are compared without it.
        return [[name, text] for name, text in value.items()]
    return list(value) if isinstance(value, tuple) else value


def _values_before(config: JobConfig) -> Fingerprint:
    """What jobs did before a setting existed: a folder that does not name it was begun with that value."""
    known = [one for one, _value in all_values(config) if one.decides_caption]
    return {_name(one): _stored(one.value_before) for one in known if one.value_before is not NEEDED}


def _free_in_retry(config: JobConfig) -> frozenset[str]:
    """Settings that a retry may have other values of, for the rows that it captions again."""
    return frozenset(_name(one) for one, _value in all_values(config) if one.free_in_retry)


def check_same_job(folder: JobFolder, fingerprint: Fingerprint, config: JobConfig) -> tuple[str, ...]:
    """Store the fingerprint in a new job folder; compare it with the stored one in an old folder.

    A job without a caption is not bound yet: a mistyped column, a wrong image root or a setting that the model refuses
    may be corrected. What there is then, failed rows, is deleted, and the job starts over.

    Returns:
        Names of the settings that differ, all of them such as a retry may change; empty unless the run is one.

    Raises:
        NotSameJobError: something differs; the message names it.
        UsageError: the folder was written by a later batchcap, or its state has been deleted in part.
        StorageError: the folder can't be written.
    """
    stored = _read(folder)
    lost = folder.job_path if stored is None else folder.journal_path
    if not lost.exists() and (folder.part_paths() or (stored is None and folder.journal_path.exists())):
        # Without them nobody knows which rows the parts hold, and with which settings they were written.
        raise UsageError(f"{lost} has been deleted, so this job can't be resumed: restore it, or use another --output")
    if stored is not None:
        values_before = _values_before(config)
        _require_known(folder, stored, fingerprint, values_before)
        stored = {**values_before, **stored}
    if stored is None or (stored != fingerprint and not _has_captions(folder)):
        if _has_results(folder):
            log.warning("nothing has been captioned yet and settings have changed: the job starts over")
        if stored is not None:  # the plan may be of other rows, too
            folder.remove_results()
        write_job_file(folder, fingerprint, config.to_dict())
        return ()
    differing = tuple(name for name in fingerprint if stored[name] != fingerprint[name])
    may_differ = _free_in_retry(config) if config.resume.retry else frozenset()
    refused = [name for name in differing if name not in may_differ]
    if refused:
        lines = [f"  --{name}: {_difference(stored[name], fingerprint[name])}" for name in refused]
        raise NotSameJobError(
            f"{folder.path} belongs to another job; these differ:\n" + "\n".join(lines) + "\n"
            "Use the old settings to go on, or another --output for a new job."
        )
    return differing


def _require_known(
    folder: JobFolder, stored: Fingerprint, fingerprint: Fingerprint, values_before: Fingerprint
) -> None:
    """Refuse a fingerprint with settings that this batchcap lacks, or without some that every job has."""
    if unknown := sorted(stored.keys() - fingerprint.keys()):
        raise UsageError(
            f"{folder.path} was begun by a later batchcap, with settings that this one does not know "
            f"({', '.join(unknown)}): use the batchcap that made it, or another --output"
        )
    if missing := sorted(fingerprint.keys() - stored.keys() - values_before.keys()):
        raise UsageError(f"{folder.job_path} is damaged, it lacks {', '.join(missing)}: choose another --output")


def begun_encoder(folder: JobFolder) -> tuple[str, str] | None:
    """Backend and arithmetic of the vision encoder that wrote the rows of a job; None where no row is finished.

    Raises:
        UsageError: the folder was written by a later batchcap.
    """
    stored = _read(folder)
    if stored is None or not _has_results(folder):
        return None
    try:
        return stored["vision-backend"], stored["vision-dtype"]
    except (KeyError, TypeError):
        return None


def stored_fingerprint(path: Path) -> Fingerprint:
    """What the job in a folder was begun with; nothing where there is none, or it can't be read."""
    try:
        return _read(JobFolder(path)) or {}
    except UsageError:
        return {}


def is_known_job(folder: JobFolder, config: JobConfig) -> bool:
    """Whether a folder is known to be this job's where the model, and with it the fingerprint, is not known yet.

    Model, prompt and an input are those of the stored configuration. Relative ones may mean others from another working
    folder: they count where the job folder is named by the same words. A folder without a job is anybody's.
    """
    try:
        file = read_job_file(folder)
        if file is None:
            return not folder.part_paths() and not folder.journal_path.exists()
        stored = file.configuration
        inputs = {*stored["input"]["inputs"]} & {*config.input.inputs}
        model, prompt, output = stored["model"], stored["generation"]["prompt"], stored["output"]
    except (UsageError, KeyError, TypeError):
        return False
    if output != config.output:
        inputs = {one for one in inputs if Path(one).is_absolute()}
        if model is not None and not Path(model).is_absolute():
            return False
    return (model, prompt) == (config.model, config.generation.prompt) and bool(inputs)


def begun_model(output: Path) -> str | None:
    """The model that the job in a folder was begun with, as it was named; None where no job can be read there."""
    try:
        file = read_job_file(JobFolder.open_existing(output))
        # Before a model had to be named, none meant the demo model.
        return None if file is None else file.configuration["model"] or DEMO_MODEL
    except (UsageError, KeyError):
        return None


def _has_results(folder: JobFolder) -> bool:
    """Whether a row is finished: in a part file or in the journal."""
    return bool(folder.part_paths()) or _in_journal(folder, Journal.has_rows)


def _has_captions(folder: JobFolder) -> bool:
    """Whether a row has a caption, in a part file or in the journal; a part that can't be read may have some."""
    try:
        in_parts = any(map(has_captions, folder.part_paths()))
    except StorageError:
        in_parts = True
    return in_parts or _in_journal(folder, Journal.has_captions)


def _in_journal(folder: JobFolder, question: Callable[[Journal], bool]) -> bool:
    """The journal's answer; no where there is none."""
    if not folder.journal_path.exists():
        return False
    with closing(Journal.open(folder.journal_path)) as journal:
        return question(journal)


def _difference(old: object, new: object) -> str:
    """Both values; of long ones only the neighbourhood of the first difference."""
    was, now = (json.dumps(value, ensure_ascii=False) for value in (old, new))
    pairs = enumerate(zip(was, now, strict=False))
    first = next((index for index, (one, other) in pairs if one != other), min(len(was), len(now)))
    start = max(0, first - SHOWN_BEFORE)
    return f"was {_cut(was, start)}, now {_cut(now, start)}"


def _cut(text: str, start: int) -> str:
    if len(text) <= SHOWN_LENGTH:
        return text
    shown = text[start : start + SHOWN_LENGTH]
    return ("…" if start else "") + shown + ("…" if start + SHOWN_LENGTH < len(text) else "")


def _read(folder: JobFolder) -> Fingerprint | None:
    file = read_job_file(folder)
    return None if file is None else file.fingerprint
