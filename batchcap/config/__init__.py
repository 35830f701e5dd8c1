"""Owns every setting of a job: frozen dataclasses, validated once, whether typed or read from a job file.

A setting is declared here alone: `setting` gives a field its help, range and names, and says whether it decides
captions. The option of `batchcap caption`, the key of job files, the fingerprint and the pages are made from the field.
"""

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from batchcap.config.captions import (
    DEFAULT_PROMPT,
    PROMPT_NAME,
    GenerationConfig,
    VisionBackend,
    VisionConfig,
    VisionDtype,
    prompt_name_fault,
)
from batchcap.config.inputs import ImagesOf, InputConfig
from batchcap.config.operations import OperationsConfig
from batchcap.config.outputs import FORMS, Existing, FolderImages, OutputsConfig, form_fault, sent_without_asking
from batchcap.config.run import LimitConfig, OnChanged, PlacementConfig, ResumeConfig, Retry
from batchcap.core.setting import Mistake, SettingsError, known_as, require_sense, setting

__all__ = [
    "DEFAULT_PROMPT",
    "DEMO_MODEL",
    "FORMS",
    "MODEL_VARIABLE",
    "PROMPT_NAME",
    "Existing",
    "FolderImages",
    "GenerationConfig",
    "ImagesOf",
    "InputConfig",
    "JobConfig",
    "LimitConfig",
    "OnChanged",
    "OperationsConfig",
    "OutputsConfig",
    "PlacementConfig",
    "Profile",
    "ResumeConfig",
    "Retry",
    "VisionBackend",
    "VisionConfig",
    "VisionDtype",
    "form_fault",
    "prompt_name_fault",
    "sent_without_asking",
]

# `--model` of the embedded demo model; a folder of this name is `./demo`.
DEMO_MODEL = "demo"
MODEL_VARIABLE = "BATCHCAP_MODEL"


class Profile(StrEnum):
    """Which defaults the settings of speed and vision have; see `profiles`."""

    AUTO = "auto"
    SMALL = "small"
    FAST = "fast"


def _output_fault(output: str) -> str:
    if not output:
        return "must not be an empty text: name the job folder"
    return f"must be a folder of this machine, not the address {output}" if "://" in output else ""


def _model_fault(model: str | None) -> str:
    return f"must not be an empty text: name a bundle folder, or {DEMO_MODEL} for the demo model" if model == "" else ""


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
    outputs: OutputsConfig = field(
        default_factory=OutputsConfig, metadata=known_as(panel="Other forms of the captions")
    )
    operations: OperationsConfig = field(default_factory=OperationsConfig, metadata=known_as(panel="Operations"))
    explicit: frozenset[str] | None = field(default=None, metadata=known_as(is_given=False))

    def __post_init__(self) -> None:
        require_sense(self)
        fault = "" if self.input.allow_remote else sent_without_asking(self.outputs.also)
        if fault:
            raise SettingsError([Mistake("also", fault)])

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON types; who gave a setting is not part of it."""
        content = dataclasses.asdict(self)
        del content["explicit"]
        return content
