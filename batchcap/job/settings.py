"""Owns which settings a run has: what nobody gave is decided, and what differs from the job is a retry's own."""

import hashlib
import json
from dataclasses import dataclass

from batchcap import __version__
from batchcap.config import JobConfig, Profile
from batchcap.engines.profiles import resolve
from batchcap.engines.tuned import read_tuned
from batchcap.model.bundle import Bundle
from batchcap.store.fingerprint import Fingerprint, begun_encoder, check_same_job, fingerprint_of
from batchcap.store.folder import JobFolder
from batchcap.store.parts import SETTINGS_KEY
from batchcap.vision.dtype import resolve_encoder


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The settings of one run.

    Attributes:
        config: every setting decided.
        fingerprint: what decides the captions.
        of_retry: settings of this run as JSON, where they are not the job's; else empty.
        remarks: for the log, where settings come from.
    """

    config: JobConfig
    fingerprint: Fingerprint
    of_retry: str
    remarks: tuple[str, ...]


def settle_settings(config: JobConfig, bundle: Bundle, folder: JobFolder) -> RunSettings:
    """Decide what nobody gave, once the folder is held and nobody else can begin the job otherwise.

    Raises:
        NotSameJobError: the folder is of a job with other settings.
    """
    remarks: tuple[str, ...] = ()
    if config.explicit is not None:
        tuned = read_tuned(bundle.id)
        resolution = resolve(config, bundle, tuned, begun_encoder(folder))
        config, remarks = resolution.config, resolution.notes
        if tuned or config.profile is not Profile.AUTO:
            remarks = (f"settings: {resolution.why}", *remarks)
    fingerprint = fingerprint_of(config, bundle.id, resolve_encoder(config.vision))
    differing = check_same_job(folder, fingerprint, config)
    of_retry = json.dumps({name: fingerprint[name] for name in differing}) if differing else ""
    return RunSettings(config, fingerprint, of_retry, remarks)


def part_metadata_of(bundle: Bundle, fingerprint: Fingerprint) -> dict[str, str]:
    """What every part says of itself: the model, and the settings that decided its captions."""
    asked = fingerprint["prompt"]
    prompt = asked if isinstance(asked, str) else json.dumps(asked, ensure_ascii=False)
    return {  # a path, or a prompt still to be refused, may be no text
        "batchcap.version": __version__,
        "batchcap.bundle": json.dumps(bundle.named),
        SETTINGS_KEY: json.dumps(fingerprint, ensure_ascii=False).encode(errors="backslashreplace").decode(),
        "batchcap.prompt_sha256": hashlib.sha256(prompt.encode(errors="backslashreplace")).hexdigest(),
    }
