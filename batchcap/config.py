"""Owns every setting of a job: frozen dataclasses, validated once, whether typed or read from a job file."""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from batchcap.errors import UsageError

# `--model` of the embedded demo model; a folder of this name is `./demo`.
DEMO_MODEL = "demo"
MODEL_VARIABLE = "BATCHCAP_MODEL"
DEFAULT_PROMPT = "Describe this image in one sentence."
LARGEST_NUMBER = 2**63 - 1  # journal and plan count in 64 bits
PROMPT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class VisionDtype(StrEnum):
    """Arithmetic of the vision encoder."""

    AUTO = "auto"
    BF16 = "bf16"
    FP32 = "fp32"
    INT8 = "int8"


class VisionBackend(StrEnum):
    """What runs the vision encoder."""

    AUTO = "auto"
    TORCH = "torch"
    ONNX = "onnx"


class Profile(StrEnum):
    """Which defaults the settings of speed and vision have; see `profiles`."""

    AUTO = "auto"
    SMALL = "small"
    FAST = "fast"


def _require(condition: bool, message: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True, slots=True)
class InputConfig:
    """What is to be captioned.

    Attributes:
        inputs: picture files, folders, Parquet files, folders of Parquet files, or glob patterns.
        image_column: Parquet column with the picture (bytes, Hugging Face `Image` struct, path); None: found by itself.
        id_column: Parquet column to use as `id`; None: file name and row number.
        image_root: folder that relative paths of a path column start from and no path may lead out of; None: they
            start from the Parquet file's folder and may lead anywhere.
        keep_columns: input columns carried into the output; ("*",) carries all but the picture.
    """

    inputs: tuple[str, ...]
    image_column: str | None = None
    id_column: str | None = None
    image_root: str | None = None
    keep_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(len(self.inputs) > 0, "no input was named: give a folder, picture files or Parquet files")
        _require(all(self.inputs), "an input is an empty text: give a folder, picture files or Parquet files")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked about each picture. Its columns in the output end with its name; "" leaves theirs as they are."""

    text: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What decides the words of a caption. Temperature 0 is greedy.

    `prompt` is the text asked about each picture, or several of them by name.
    """

    prompt: str | dict[str, str] = DEFAULT_PROMPT
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    loop_stop: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            _require_prompt_names(list(self.prompt))
        _require(self.max_new_tokens >= 1, "max_new_tokens must be at least 1")
        _require(math.isfinite(self.temperature) and self.temperature >= 0, "temperature must be 0 (greedy) or more")
        _require(0 < self.top_p <= 1, "top_p must be above 0 and at most 1")
        _require(self.top_k >= 0, "top_k must be 0 (off) or more")
        _require(
            math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0,
            "repetition_penalty must be above 0 (1 is off)",
        )

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """What is asked about each picture, in the order of the output columns."""
        if isinstance(self.prompt, str):
            return (Prompt(self.prompt),)
        return tuple(Prompt(text, name) for name, text in self.prompt.items())

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """The names of `prompts`."""
        return tuple(prompt.name for prompt in self.prompts)

    @property
    def needs_logits(self) -> bool:
        """Whether the arg-max inside the graph is not enough."""
        return self.temperature > 0 or self.repetition_penalty != 1.0

    @property
    def depends_on_row(self) -> bool:
        """Whether equal pictures get other captions in other rows."""
        return self.temperature > 0


def _require_prompt_names(names: list[str]) -> None:
    _require(bool(names), "prompt is a table without a prompt: give NAME = TEXT in it, or a text in its place")
    for name in names:
        _require(
            PROMPT_NAME.fullmatch(name) is not None,
            f"{name!r} can't name a prompt: a name has letters, digits and _, and begins with no digit",
        )
    # Column names that differ in case only are the same for DuckDB and other readers.
    folded = [name.lower() for name in names]
    doubles = [name for name in names if folded.count(name.lower()) > 1]
    _require(not doubles, f"several prompts are called {' and '.join(doubles)}: give each another name")


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """What decides a picture's features.

    Attributes:
        max_visual_tokens: budget a picture; a token covers 32 × 32 pixels (merge² patches) after the resize.
        dtype: arithmetic of the encoder.
        max_image_pixels: pictures with more pixels are refused before they are decoded.
        backend: what runs the encoder.
    """

    max_visual_tokens: int = 256
    dtype: VisionDtype = VisionDtype.AUTO
    max_image_pixels: int = 256_000_000
    backend: VisionBackend = VisionBackend.AUTO

    def __post_init__(self) -> None:
        _require(self.max_visual_tokens >= 4, "max_visual_tokens must be at least 4")
        _require(self.max_image_pixels >= 1024, "max_image_pixels must be at least 1024")


@dataclass(frozen=True, slots=True)
class PlacementConfig:
    """Where the stages run and how much they hold; never changes a caption.

    Attributes:
        decoders: decoder processes.
        slots: captions a decoder works on at once.
        decoder_threads: threads of one decoder; 0: the cores divided by the decoders.
        vision_threads: threads of the vision encoder; 0: all cores.
        patch_budget: the most patches that the vision encoder works on at once, all lanes together.
        queue_mib: bound of the feature queue.
        rows_per_part: rows of a part file.
        own_cores: keep decoders on cores of their own where the machine has enough of them; see `cores`.
    """

    decoders: int = 1
    slots: int = 24
    decoder_threads: int = 0
    vision_threads: int = 0
    patch_budget: int = 4096
    queue_mib: int = 128
    rows_per_part: int = 1000
    own_cores: bool = True

    def __post_init__(self) -> None:
        for name in ("decoders", "slots", "patch_budget", "queue_mib", "rows_per_part"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1")
        for name in ("decoder_threads", "vision_threads"):
            _require(getattr(self, name) >= 0, f"{name} must be 0 (automatic) or more")


@dataclass(frozen=True, slots=True)
class LimitConfig:
    """When a run ends before, or fails at, the end of its work.

    Attributes:
        limit: caption only the first rows of the inputs; 0: all.
        max_runtime_s: stop in good order after this time; 0: never.
        max_error_rate: largest share of failed rows for exit code 0.
        picture_timeout_s: a worker that does not come to an end with a picture for so long is ended itself.
    """

    limit: int = 0
    max_runtime_s: float = 0.0
    max_error_rate: float = 1.0
    picture_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        _require(self.limit >= 0, "limit must be 0 (all) or more")
        _require(self.limit <= LARGEST_NUMBER, f"limit must be at most {LARGEST_NUMBER}")
        _require(self.max_runtime_s >= 0, "max_runtime_s must be 0 (no limit) or more")
        _require(0 <= self.max_error_rate <= 1, "max_error_rate must be between 0 and 1")
        _require(self.picture_timeout_s > 0, "picture_timeout_s must be above 0")


class Retry(StrEnum):
    """Rows that have ended and may be captioned again: the failed ones, and captions of these verdicts."""

    FAILED = "failed"
    TRUNCATED = "truncated"
    REPEATED = "repeated"
    DEGENERATE = "degenerate"
    EMPTY = "empty"


class OnChanged(StrEnum):
    """What becomes of captions whose input is not what it was when they were written."""

    KEEP = "keep"
    RECAPTION = "recaption"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class ResumeConfig:
    """What a run does about rows that earlier runs have finished.

    Attributes:
        retry: which of them it captions again.
        on_changed: what becomes of those whose input has changed.
    """

    retry: tuple[str, ...] = ()
    on_changed: OnChanged = OnChanged.STOP

    def __post_init__(self) -> None:
        known = [str(one) for one in Retry]
        for name in self.retry:
            _require(name in known, f"retry {name!r} is unknown: give some of {', '.join(known)}, separated by commas")


@dataclass(frozen=True, slots=True)
class JobConfig:
    """A whole job.

    Attributes:
        input: what is to be captioned.
        output: job folder.
        model: bundle folder, or `DEMO_MODEL`; None: nobody named one, and the job is refused.
        profile: where the settings of speed and vision come from that nobody gave.
        given: names of those that somebody gave (`profiles.Settings`); None: all are as they stand here, and the
            profile decides nothing.
    """

    input: InputConfig
    output: str
    model: str | None = None
    profile: Profile = Profile.AUTO
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    limits: LimitConfig = field(default_factory=LimitConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    given: frozenset[str] | None = None

    def __post_init__(self) -> None:
        _require(bool(self.output), "output is an empty text: name the job folder")
        _require("://" not in self.output, f"output {self.output} is an address: name a folder of this machine")
        _require(self.model != "", f"model is an empty text: name a bundle folder, or {DEMO_MODEL} for the demo model")

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON types; who gave a setting is not part of it."""
        content = dataclasses.asdict(self)
        del content["given"]
        return content
