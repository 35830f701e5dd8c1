"""Owns the file that remembers what was tuned: one for each bundle and kind of machine, in the cache folder."""

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from batchcap.config import InputConfig, JobConfig, VisionBackend, VisionDtype
from batchcap.core.atomic import write_atomic
from batchcap.core.cache import cache_folder
from batchcap.core.errors import BatchcapError, UsageError
from batchcap.core.machine import available_cores, cpu_name
from batchcap.engines.profiles import Settings, Tuned

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
FOLDER = "tuning"


@dataclass(frozen=True, slots=True)
class TuningKey:
    """What a measurement holds for."""

    bundle: str
    cpu: str
    cores: int
    onnxruntime: str

    @classmethod
    def here(cls, bundle_id: str) -> "TuningKey":
        """A bundle on this machine."""
        try:
            version = metadata.version("onnxruntime")
        except metadata.PackageNotFoundError:  # another build of it, as those for special hardware
            version = "unknown"
        return cls(bundle_id, cpu_name(), available_cores(), version)

    @property
    def path(self) -> Path:
        """Its file. Machines of several kinds may share a cache folder; a new ONNX Runtime replaces the old file.

        Raises:
            UsageError: nothing says where the cache folder is.
        """
        machine = hashlib.sha256(f"{self.cpu}\n{self.cores}".encode()).hexdigest()
        return cache_folder() / FOLDER / f"{self.bundle[:16]}-{machine[:8]}.json"


def read_tuned(bundle_id: str) -> Tuned | None:
    """What was tuned for a bundle on this machine; a file that is broken or of another machine is ignored."""
    key = TuningKey.here(bundle_id)
    try:
        path = key.path
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UsageError):
        return None
    except (OSError, ValueError) as error:
        log.warning("%s can't be read (%s) and is ignored: run `batchcap tune` again", path, error)
        return None
    try:
        if content["format_version"] != FORMAT_VERSION:
            reason = f"is of format {content['format_version']}"
        elif differing := _difference(content["made_for"], key):
            reason = f"was measured {differing}"
        else:
            return _tuned(content)
    except (KeyError, TypeError, ValueError, UsageError) as error:
        reason = f"is damaged ({error!r})"
    log.warning("%s %s and is ignored: run `batchcap tune` again", path, reason)
    return None


def _difference(stored: dict[str, Any], key: TuningKey) -> str:
    """The first thing that differs, for a person; nothing where all is the same."""
    for name, value in dataclasses.asdict(key).items():
        if stored[name] != value:
            return f"with {name} {stored[name]}, not {value}"
    return ""


def _tuned(content: dict[str, Any]) -> Tuned:
    """The content of a file of ours.

    Raises:
        KeyError, TypeError, ValueError, UsageError: it is none.
    """
    values = dict(content["settings"])
    values["vision_backend"] = VisionBackend(values["vision_backend"])
    values["vision_dtype"] = VisionDtype(values["vision_dtype"])
    settings = Settings(**values)
    if not all(type(value) is int for value in values.values() if not isinstance(value, str)):
        raise TypeError("a setting is no whole number")
    settings.applied_to(JobConfig(InputConfig(("pictures",)), "captions"))  # are all in their range?
    return Tuned(
        settings=settings,
        measured_at=datetime.fromisoformat(content["measured_at"]),
        speedup=float(content["speedup"]),
        rounded_vision=bool(content["rounded_vision"]),
    )


def write_tuned(bundle_id: str, tuned: Tuned, measured: list[dict[str, Any]]) -> Path:
    """Keep what was found, and what was measured on the way.

    Raises:
        UsageError: the cache folder can't be written.
    """
    key = TuningKey.here(bundle_id)
    content = {
        "format_version": FORMAT_VERSION,
        "made_for": dataclasses.asdict(key),
        "measured_at": tuned.measured_at.isoformat(timespec="seconds"),
        "speedup": tuned.speedup,
        "rounded_vision": tuned.rounded_vision,
        "settings": dataclasses.asdict(tuned.settings),
        "measured": measured,
    }
    path = key.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    except (OSError, BatchcapError) as error:
        raise UsageError(
            f"can't keep what was found in {path.parent} ({error}): set BATCHCAP_CACHE to a folder that can be written"
        ) from None
    return path
