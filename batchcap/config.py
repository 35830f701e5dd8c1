"""Owns every setting of a job: frozen dataclasses, validated once, whether typed or read from a job file."""

import dataclasses
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from batchcap.core.prompts import Prompt, Sampling
from batchcap.core.setting import MAX_NUMBER, did_you_mean, require_sense, setting

# `--model` of the embedded demo model; a folder of this name is `./demo`.
DEMO_MODEL = "demo"
MODEL_VARIABLE = "BATCHCAP_MODEL"
DEFAULT_PROMPT = "Describe this image in one sentence."
# Far above any machine and any caption: what is larger is a slip, and would end in want of memory, not in captions.
MAX_THREADS = 1024
MAX_DECODERS = 256
MAX_SLOTS = 4096
MAX_QUEUE_MIB = 1 << 20
MAX_PATCHES = 1 << 20
MAX_ROWS_PER_PART = 10_000_000
MAX_NEW_TOKENS = 1 << 20
MAX_VISUAL_TOKENS = 1 << 16
MAX_IMAGE_PIXELS = 1 << 34
MAX_TOP_K = 1 << 20
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


def _inputs_fault(inputs: tuple[str, ...]) -> str:
    needed = "give a folder, image files or Parquet files"
    if not inputs:
        return f"must not be empty: {needed}"
    return "" if all(inputs) else f"must not be an empty text: {needed}"


def _prompt_names_fault(prompt: str | dict[str, str]) -> str:
    if isinstance(prompt, str):
        return ""
    if not prompt:
        return "is a table without a prompt: give NAME = TEXT in it, or a text in its place"
    for name in prompt:
        if fault := prompt_name_fault(name):
            return fault
    # Column names that differ in case only are the same for DuckDB and other readers.
    folded = [name.lower() for name in prompt]
    doubles = [name for name in prompt if folded.count(name.lower()) > 1]
    return f"has several prompts called {' and '.join(doubles)}: give each another name" if doubles else ""


def prompt_name_fault(name: str) -> str:
    """What is wrong with the name of a prompt; "" where nothing is."""
    if PROMPT_NAME.fullmatch(name):
        return ""
    return f"must not be called {name!r}: a name has letters (of English), digits and _, and begins with no digit"


def _retry_fault(retry: tuple[str, ...]) -> str:
    known = [str(one) for one in Retry]
    unknown = [name for name in retry if name not in known]
    if not unknown:
        return ""
    return f"must be some of {', '.join(known)}, not {unknown[0]!r}{did_you_mean(unknown[0], known)}"


def _output_fault(output: str) -> str:
    if not output:
        return "must not be an empty text: name the job folder"
    return f"must be a folder of this machine, not the address {output}" if "://" in output else ""


def _model_fault(model: str | None) -> str:
    return f"must not be an empty text: name a bundle folder, or {DEMO_MODEL} for the demo model" if model == "" else ""


@dataclass(frozen=True, slots=True)
class InputConfig:
    """What is to be captioned.

    Attributes:
        inputs: image files, folders, Parquet files, folders of Parquet files, or glob patterns.
        image_column: Parquet column with the image (bytes, Hugging Face `Image` struct, path); None: found by itself.
        id_column: Parquet column to use as `id`; None: file name and row number.
        image_root: folder that relative paths of a path column start from and no path may lead out of; None: they
            start from the Parquet file's folder and may lead anywhere.
        keep_columns: input columns carried into the output; ("*",) carries all but the image.
    """

    inputs: tuple[str, ...] = field(metadata=setting(argument="INPUT", check=_inputs_fault))
    image_column: str | None = None
    id_column: str | None = None
    image_root: str | None = None
    keep_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_sense(self)


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What decides the words of a caption. Temperature 0 is greedy.

    `prompt` is the text asked about each image, or several of them by name.
    """

    prompt: str | dict[str, str] = field(default=DEFAULT_PROMPT, metadata=setting(check=_prompt_names_fault))
    max_new_tokens: int = field(default=128, metadata=setting(at_least=1, at_most=MAX_NEW_TOKENS, decides_caption=True))
    temperature: float = field(
        default=0.0, metadata=setting(at_least=0, zero="greedy", at_most=2, decides_caption=True)
    )
    top_p: float = field(default=1.0, metadata=setting(above=0, at_most=1))
    top_k: int = field(default=0, metadata=setting(at_least=0, zero="off", at_most=MAX_TOP_K, decides_caption=True))
    repetition_penalty: float = field(default=1.0, metadata=setting(above=0, at_most=10, decides_caption=True))
    seed: int = 0
    loop_stop: bool = True

    def __post_init__(self) -> None:
        require_sense(self)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """What is asked about each image, in the order of the output columns."""
        if isinstance(self.prompt, str):
            return (Prompt(self.prompt),)
        return tuple(Prompt(text, name) for name, text in self.prompt.items())

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """The names of `prompts`."""
        return tuple(prompt.name for prompt in self.prompts)

    @property
    def sampling(self) -> Sampling:
        """How the tokens of a caption are chosen."""
        return Sampling(**{one.name: getattr(self, one.name) for one in dataclasses.fields(Sampling)})


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """What decides an image's features.

    Attributes:
        max_visual_tokens: budget an image; a token covers 32 × 32 pixels (merge² patches) after the resize.
        dtype: arithmetic of the encoder.
        max_image_pixels: images with more pixels are refused before they are decoded.
        backend: what runs the encoder.
    """

    max_visual_tokens: int = field(
        default=256, metadata=setting(at_least=4, at_most=MAX_VISUAL_TOKENS, decides_caption=True)
    )
    dtype: VisionDtype = field(default=VisionDtype.AUTO, metadata=setting(key="vision_dtype", old_keys=("dtype",)))
    max_image_pixels: int = field(
        default=256_000_000, metadata=setting(at_least=1024, at_most=MAX_IMAGE_PIXELS, decides_caption=True)
    )
    backend: VisionBackend = field(
        default=VisionBackend.AUTO, metadata=setting(key="vision_backend", old_keys=("backend",))
    )

    def __post_init__(self) -> None:
        require_sense(self)


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

    decoders: int = field(default=1, metadata=setting(at_least=1, at_most=MAX_DECODERS))
    slots: int = field(default=24, metadata=setting(at_least=1, at_most=MAX_SLOTS))
    decoder_threads: int = field(default=0, metadata=setting(at_least=0, zero="automatic", at_most=MAX_THREADS))
    vision_threads: int = field(default=0, metadata=setting(at_least=0, zero="automatic", at_most=MAX_THREADS))
    patch_budget: int = field(default=4096, metadata=setting(at_least=1, at_most=MAX_PATCHES))
    queue_mib: int = field(default=128, metadata=setting(at_least=1, at_most=MAX_QUEUE_MIB))
    rows_per_part: int = field(default=1000, metadata=setting(at_least=1, at_most=MAX_ROWS_PER_PART))
    own_cores: bool = True

    def __post_init__(self) -> None:
        require_sense(self)


@dataclass(frozen=True, slots=True)
class LimitConfig:
    """When a run ends before, or fails at, the end of its work.

    Attributes:
        limit: caption only the first rows of the inputs; 0: all.
        max_runtime_s: stop in good order after this time; 0: never.
        max_error_rate: largest share of failed rows for exit code 0.
        picture_timeout_s: a worker that does not come to an end with an image for so long is ended itself.
    """

    limit: int = field(default=0, metadata=setting(at_least=0, zero="all", at_most=MAX_NUMBER))
    max_runtime_s: float = field(
        default=0.0, metadata=setting(key="max_runtime", old_keys=("max_runtime_s",), at_least=0, zero="no limit")
    )
    max_error_rate: float = field(default=1.0, metadata=setting(at_least=0, at_most=1))
    image_timeout_s: float = field(
        default=600.0,
        metadata=setting(key="image_timeout", old_keys=("picture_timeout", "picture_timeout_s"), above=0),
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

    retry: tuple[str, ...] = field(default=(), metadata=setting(check=_retry_fault))
    on_changed: OnChanged = OnChanged.STOP

    def __post_init__(self) -> None:
        require_sense(self)


@dataclass(frozen=True, slots=True)
class JobConfig:
    """A whole job.

    Attributes:
        input: what is to be captioned.
        output: job folder.
        model: bundle folder, or `DEMO_MODEL`; None: nobody named one, and the job is refused.
        profile: where the settings of speed and vision come from that nobody gave.
        explicit: names of those that somebody gave (`profiles.Settings`); None: all are as they stand here, and the
            profile decides nothing.
    """

    input: InputConfig
    output: str = field(metadata=setting(check=_output_fault))
    model: str | None = field(default=None, metadata=setting(check=_model_fault))
    profile: Profile = Profile.AUTO
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    placement: PlacementConfig = field(
        default_factory=PlacementConfig, metadata=setting(key="speed", old_keys=("placement",))
    )
    limits: LimitConfig = field(default_factory=LimitConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    explicit: frozenset[str] | None = None

    def __post_init__(self) -> None:
        require_sense(self)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON types; who gave a setting is not part of it."""
        content = dataclasses.asdict(self)
        del content["explicit"]
        return content
