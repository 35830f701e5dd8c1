"""Owns the settings of a run: where its stages run, when it ends, what it does about finished rows."""

from dataclasses import dataclass
from enum import StrEnum

from batchcap.core.setting import MAX_NUMBER, Form, did_you_mean, require_sense, setting

# Far above any machine: what is larger is a slip, and would end in want of memory, not in captions.
MAX_THREADS = 1024
MAX_DECODERS = 256
MAX_SLOTS = 4096
MAX_QUEUE_MIB = 1 << 20
MAX_PATCHES = 1 << 20
MAX_ROWS_PER_PART = 10_000_000


@dataclass(frozen=True, slots=True)
class PlacementConfig:
    """Where the stages run and how much they hold; never changes a caption."""

    decoders: int = setting(
        1, "Decoder processes; they share the weights of a large model.", at_least=1, at_most=MAX_DECODERS
    )
    slots: int = setting(
        24, "Captions that one decoder generates at the same time; each takes memory.", at_least=1, at_most=MAX_SLOTS
    )
    decoder_threads: int = setting(
        0, "Threads of one decoder; 0: cores / decoders.", at_least=0, zero="automatic", at_most=MAX_THREADS
    )
    vision_threads: int = setting(
        0, "Threads of the vision encoder; 0: all cores.", at_least=0, zero="automatic", at_most=MAX_THREADS
    )
    patch_budget: int = setting(
        4096,
        "Patches (16 x 16 pixels) per encoder batch; a larger image is encoded alone.",
        at_least=1,
        at_most=MAX_PATCHES,
    )
    queue_mib: int = setting(
        128, "Memory for encoded images waiting for a decoder, in MiB.", at_least=1, at_most=MAX_QUEUE_MIB
    )
    rows_per_part: int = setting(1000, "Rows per part-*.parquet file.", at_least=1, at_most=MAX_ROWS_PER_PART)
    own_cores: bool = setting(
        True,
        "On machines with 8 cores or more, pin each decoder to its own cores, on one NUMA node if possible; `batchcap "
        "doctor` shows the plan.",
    )

    def __post_init__(self) -> None:
        require_sense(self)


@dataclass(frozen=True, slots=True)
class LimitConfig:
    """When a run ends before, or fails at, the end of its work."""

    limit: int = setting(0, "Caption only the first N rows; 0: all.", at_least=0, zero="all", at_most=MAX_NUMBER)
    max_runtime_s: float = setting(
        0.0,
        "Stop cleanly after this many seconds (exit code 75); 0: never.",
        key="max_runtime",
        old_keys=("max_runtime_s",),
        at_least=0,
        zero="no limit",
    )
    max_error_rate: float = setting(
        1.0, "Exit with code 3 if a larger share of the rows failed, and always if all failed.", at_least=0, at_most=1
    )
    image_timeout_s: float = setting(
        600.0,
        "Seconds before a worker that is stuck on an image is restarted; after two restarts the image fails.",
        key="image_timeout",
        old_keys=("picture_timeout", "picture_timeout_s"),
        flags=("--image-timeout", "--picture-timeout"),
        above=0,
    )

    def __post_init__(self) -> None:
        require_sense(self)


class Retry(StrEnum):
    """Rows that have ended and may be captioned again: the failed ones, and captions of these verdicts."""

    FAILED = "failed"
    TRUNCATED = "truncated"
    REPEATED = "repeated"
    DEGENERATE = "degenerate"
    EMPTY = "empty"


def _retry_fault(retry: tuple[str, ...]) -> str:
    known = [str(one) for one in Retry]
    unknown = [name for name in retry if name not in known]
    if not unknown:
        return ""
    return f"must be some of {', '.join(known)}, not {unknown[0]!r}{did_you_mean(unknown[0], known)}"


class OnChanged(StrEnum):
    """What becomes of captions whose input is not what it was when they were written."""

    KEEP = "keep"
    RECAPTION = "recaption"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class ResumeConfig:
    """What a run does about rows that earlier runs have finished."""

    retry: tuple[str, ...] = setting(
        (),
        "Caption these rows of earlier runs again, separated by commas: failed, or a verdict (truncated, repeated, "
        "degenerate, empty). Verdicts need a changed option of Prompt and decoding, such as --max-new-tokens.",
        file_help="Rows of earlier runs to caption again: failed, or a verdict (truncated, repeated, degenerate, "
        "empty). Verdicts need a changed setting of [generation].",
        form=Form.COMMAS,
        check=_retry_fault,
    )
    on_changed: OnChanged = setting(
        OnChanged.STOP,
        "If an image or a table has changed since it was captioned: stop (exit code 5), keep the existing "
        "captions, or recaption.",
    )

    def __post_init__(self) -> None:
        require_sense(self)
