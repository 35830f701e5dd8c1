"""Owns every setting of a job: frozen dataclasses, validated once, whether typed or read from a job file.

A setting is declared here alone: `setting` gives a field its help, range and names, and says whether it decides
captions. The option of `batchcap caption`, the key of job files, the fingerprint and the pages are made from the field.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from batchcap.core.prompts import Prompt, Sampling
from batchcap.core.setting import MAX_NUMBER, Form, did_you_mean, known_as, require_sense, setting

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
    needed = "give a folder, image files or tables"
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
    """What is to be captioned; see the help of each setting."""

    inputs: tuple[str, ...] = field(
        metadata=known_as(
            help="Image files, folders of images or Parquet files, tables (Parquet, JSONL, CSV, TSV), or quoted glob "
            "patterns.",
            argument="INPUT",
            form=Form.REPEATED,
            check=_inputs_fault,
        )
    )
    image_column: str | None = setting(
        None,
        "Column with the image: bytes, Hugging Face Image, or path. Default: detected.",
        decides_caption=True,
    )
    id_column: str | None = setting(
        None, "Column to use as id. Default: file name and row number.", decides_caption=True
    )
    image_root: str | None = setting(
        None,
        "Base folder for relative paths in a path column; paths outside of it are rejected. Default: the table's "
        "folder, with no limit.",
        decides_caption=True,
    )
    keep_columns: tuple[str, ...] = setting(
        (),
        "Input columns to carry into the output, separated by commas; * for all but the image.",
        file_help='Input columns to carry into the output; ["*"]: all but the image.',
        form=Form.COMMAS,
        decides_caption=True,
    )

    def __post_init__(self) -> None:
        require_sense(self)


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What decides the words of a caption. Temperature 0 is greedy.

    `prompt` is the text asked about each image, or several of them by name.
    """

    prompt: str | dict[str, str] = setting(
        DEFAULT_PROMPT,
        "What to ask about each image; @FILE reads it from a file, @@ begins a text with @. Give several as "
        "NAME=TEXT for several captions of each image, in columns of their own: caption_NAME and so on.",
        file_help="What to ask about each image; @FILE reads it from a file, @@ begins a text with @. A table "
        "NAME = TEXT asks several, with columns of their own: caption_NAME and so on.",
        metavar="[NAME=]TEXT",
        form=Form.PROMPTS,
        check=_prompt_names_fault,
        decides_caption=True,
    )
    max_new_tokens: int = setting(
        128,
        "Longest caption, in tokens.",
        at_least=1,
        at_most_in_new_job=MAX_NEW_TOKENS,
        decides_caption=True,
        free_in_retry=True,
    )
    temperature: float = setting(
        0.0,
        "0: greedy decoding, always the most likely token; above 0: sampling.",
        at_least=0,
        zero="greedy",
        at_most_in_new_job=2,
        decides_caption=True,
        free_in_retry=True,
    )
    top_p: float = setting(
        1.0,
        "Nucleus sampling: sample from the most likely tokens that together have this probability; 1: off.",
        above=0,
        at_most=1,
        decides_caption=True,
        free_in_retry=True,
    )
    top_k: int = setting(
        0,
        "Sample from the K most likely tokens; 0: off.",
        at_least=0,
        zero="off",
        at_most_in_new_job=MAX_TOP_K,
        decides_caption=True,
        free_in_retry=True,
    )
    repetition_penalty: float = setting(
        1.0,
        "Above 1: makes tokens that were used before less likely; 1: off.",
        above=0,
        at_most_in_new_job=10,
        decides_caption=True,
        free_in_retry=True,
    )
    seed: int = setting(0, "Seed for sampling; combined with each row's id.", decides_caption=True, free_in_retry=True)
    loop_stop: bool = setting(
        True, "Stop early when a caption repeats itself endlessly.", decides_caption=True, free_in_retry=True
    )

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
    """What decides an image's features; see the help of each setting."""

    max_visual_tokens: int = setting(
        256,
        "Most visual tokens per image. Each covers 32 x 32 pixels after resizing, so 256 tokens cover about 512 x 512; "
        "more tokens show more detail and take longer.",
        at_least=4,
        at_most_in_new_job=MAX_VISUAL_TOKENS,
        decides_caption=True,
    )
    dtype: VisionDtype = setting(
        VisionDtype.AUTO,
        "Precision of the vision encoder: bf16 (torch), fp32, int8 (onnx); auto: bf16 with torch if the CPU supports "
        "it, else fp32.",
        key="vision_dtype",
        old_keys=("dtype",),
        decides_caption=True,
    )
    max_image_pixels: int = setting(
        256_000_000,
        "Refuse images with more pixels than this.",
        order=1,
        at_least=1024,
        at_most_in_new_job=MAX_IMAGE_PIXELS,
        decides_caption=True,
        free_in_retry=True,
    )
    backend: VisionBackend = setting(
        VisionBackend.AUTO,
        "Runtime of the vision encoder: torch (PyTorch) or onnx (ONNX Runtime, works without PyTorch); auto: torch if "
        "installed.",
        key="vision_backend",
        old_keys=("backend",),
        decides_caption=True,
    )

    def __post_init__(self) -> None:
        require_sense(self)


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

    input: InputConfig = field(metadata=known_as(panel="Input"))
    output: str = field(
        metadata=known_as(
            help="Job folder: captions, statistics, state.", flags=("--output", "-o"), check=_output_fault
        ),
    )
    model: str | None = setting(
        None,
        f"Bundle made by `batchcap export`. {DEMO_MODEL}: the embedded model, which knows drawn scenes only "
        f"(a folder of that name: ./{DEMO_MODEL}).",
        flags=("--model", "-m"),
        variable=MODEL_VARIABLE,
        check=_model_fault,
        decides_caption=True,
    )
    profile: Profile = setting(
        Profile.AUTO,
        "Defaults for Speed and memory and for the vision encoder. auto: what `batchcap tune` found on this machine, "
        "else those shown; small: less memory; fast: the fastest encoder on this CPU, even if it rounds more, and more "
        "slots for a w8a8 bundle. Options you give take precedence.",
    )
    generation: GenerationConfig = field(
        default_factory=GenerationConfig, metadata=known_as(panel="Prompt and decoding")
    )
    vision: VisionConfig = field(default_factory=VisionConfig, metadata=known_as(panel="Image and vision"))
    placement: PlacementConfig = field(
        default_factory=PlacementConfig,
        metadata=known_as(key="speed", old_keys=("placement",), panel="Speed and memory"),
    )
    limits: LimitConfig = field(default_factory=LimitConfig, metadata=known_as(panel="Limits"))
    resume: ResumeConfig = field(default_factory=ResumeConfig, metadata=known_as(panel="Resume"))
    explicit: frozenset[str] | None = field(default=None, metadata=known_as(is_given=False))

    def __post_init__(self) -> None:
        require_sense(self)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON types; who gave a setting is not part of it."""
        content = dataclasses.asdict(self)
        del content["explicit"]
        return content
