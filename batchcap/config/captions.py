"""Owns the settings that decide a caption: what is asked, how its tokens are chosen, what the encoder sees."""

import dataclasses
import re
from dataclasses import dataclass
from enum import StrEnum

from batchcap.core.prompts import Prompt, Sampling
from batchcap.core.setting import Form, require_sense, setting

DEFAULT_PROMPT = "Describe this image in one sentence."
# Far above any caption: what is larger is a slip, and would end in want of memory, not in captions.
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
