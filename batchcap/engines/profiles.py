"""Owns where the settings of speed and vision come from: the profile, what `batchcap tune` found, what somebody gave.

Every setting has one source, asked in this order: given on the command line or in the job file; for the vision encoder,
the one that the job was begun with; the profile, which may take what was tuned; the plain default.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from batchcap.config import JobConfig, PlacementConfig, Profile, VisionBackend, VisionConfig, VisionDtype
from batchcap.core.errors import UsageError
from batchcap.model.bundle import Bundle
from batchcap.vision.dtype import ONLY_BACKEND, resolve_encoder

Encoder = tuple[VisionBackend, VisionDtype]

AUTO_ENCODER: Encoder = (VisionBackend.AUTO, VisionDtype.AUTO)
# The fastest encoder on every CPU measured, although it rounds more than the default one. With AMX, one thread, 256
# patches at 2B: 0.39 s, bf16 0.56 s. With AVX-512 it was faster than bf16, too, with AVX2 than fp32.
INT8_ENCODER: Encoder = (VisionBackend.ONNX, VisionDtype.INT8)
# Decode steps of a W8A8 decoder get faster up to here; INT4 gains less, and stays below 5 GiB with the default.
W8A8_SLOTS = 48
_VISION_NAMES = ("vision_backend", "vision_dtype")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a profile decides; named as the options are. Without values: today's defaults."""

    decoders: int = PlacementConfig().decoders
    slots: int = PlacementConfig().slots
    decoder_threads: int = PlacementConfig().decoder_threads
    vision_threads: int = PlacementConfig().vision_threads
    patch_budget: int = PlacementConfig().patch_budget
    queue_mib: int = PlacementConfig().queue_mib
    vision_backend: VisionBackend = VisionConfig().backend
    vision_dtype: VisionDtype = VisionConfig().dtype

    @classmethod
    def of(cls, config: JobConfig) -> "Settings":
        """Those of a job."""
        placement = {name: getattr(config.placement, name) for name in PLACEMENT_NAMES}
        return cls(**placement, vision_backend=config.vision.backend, vision_dtype=config.vision.dtype)

    def applied_to(self, config: JobConfig) -> JobConfig:
        """The job with these settings.

        Raises:
            UsageError: one is out of its range.
        """
        return replace(
            config,
            placement=replace(config.placement, **{name: getattr(self, name) for name in PLACEMENT_NAMES}),
            vision=replace(config.vision, backend=self.vision_backend, dtype=self.vision_dtype),
        )

    @property
    def encoder(self) -> Encoder:
        """Backend and arithmetic of the vision encoder."""
        return self.vision_backend, self.vision_dtype

    def with_encoder(self, encoder: Encoder) -> "Settings":
        """The same with another vision encoder."""
        return replace(self, vision_backend=encoder[0], vision_dtype=encoder[1])


NAMES = tuple(field.name for field in dataclasses.fields(Settings))
PLACEMENT_NAMES = tuple(name for name in NAMES if name not in _VISION_NAMES)
# Settings that only make sense together: where one was given, the profile's other one counts only beside the same.
_PAIRS = (_VISION_NAMES, ("decoders", "decoder_threads"))
_GROUPS = (*_PAIRS, *((name,) for name in NAMES if not any(name in pair for pair in _PAIRS)))

SMALL = Settings(slots=4, patch_budget=1024, queue_mib=32)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What `batchcap tune` found for this machine and a bundle.

    Attributes:
        settings: the fastest.
        measured_at: when.
        speedup: images a minute with them, divided by those with the defaults.
        rounded_vision: whether encoders that round more than the default one were tried.
    """

    settings: Settings
    measured_at: datetime
    speedup: float
    rounded_vision: bool


@dataclass(frozen=True, slots=True)
class Resolution:
    """The configuration a job runs with.

    Attributes:
        config: every setting is decided in it.
        why: where the settings come from, for a person.
        notes: what a person should know besides.
    """

    config: JobConfig
    why: str
    notes: tuple[str, ...] = ()


def resolve(
    config: JobConfig, bundle: Bundle, tuned: Tuned | None = None, begun_with: tuple[str, str] | None = None
) -> Resolution:
    """Decide every setting that nobody gave.

    Args:
        config: the job, as asked for.
        bundle: its model.
        tuned: what `batchcap tune` found for it here.
        begun_with: backend and arithmetic of the encoder that wrote the job's first rows; they decide captions, so they
            are kept whatever the profile says now.
    """
    if config.explicit is None:
        return Resolution(config, "as given")
    wanted, why, notes = _of_profile(config.profile, bundle, tuned)
    kept = _known_encoder(begun_with)
    if kept is not None and _usable(kept):
        if config.explicit.isdisjoint(_VISION_NAMES) and _resolved(wanted.encoder) != kept:
            now = " ".join(_resolved(wanted.encoder))
            keeps = (
                f"this job keeps the vision encoder it was begun with, {' '.join(kept)}: what would be chosen now, "
                f"{now}, gives slightly different captions, and is for a new --output"
            )
            notes = (*notes, keeps)
        wanted = wanted.with_encoder(kept)
    chosen = _with_given(Settings.of(config), config.explicit, wanted)
    if chosen.vision_backend is VisionBackend.AUTO and (only := ONLY_BACKEND.get(chosen.vision_dtype)):
        notes = (*notes, f"--vision-dtype {chosen.vision_dtype} implies --vision-backend {only}, which alone has it")
    explicit = ", ".join(f"--{name.replace('_', '-')}" for name in NAMES if name in config.explicit)
    why += f"; given: {explicit}" if explicit else ""
    return Resolution(replace(chosen.applied_to(config), explicit=None), why, notes)


def _with_given(asked: Settings, explicit: Iterable[str], wanted: Settings) -> Settings:
    """What was given, and beside it what is wanted where the two go together, else the default."""
    chosen: dict[str, Any] = {}
    for group in _GROUPS:
        fixed = {name: getattr(asked, name) for name in group if name in explicit}
        agree = all(getattr(wanted, name) == value for name, value in fixed.items())
        source = wanted if agree else Settings()
        chosen |= {name: fixed.get(name, getattr(source, name)) for name in group}
    return Settings(**chosen)


def _of_profile(profile: Profile, bundle: Bundle, tuned: Tuned | None) -> tuple[Settings, str, tuple[str, ...]]:
    """Its settings, why these, and what to say besides."""
    if profile is Profile.SMALL:
        return SMALL, "profile small", ()
    base, why = Settings(), "not tuned for this machine: run `batchcap tune`"
    if tuned is not None:
        base = tuned.settings if _usable(tuned.settings.encoder) else tuned.settings.with_encoder(AUTO_ENCODER)
        when = f"{tuned.measured_at.astimezone():%Y-%m-%d %H:%M}"
        gain = f"{tuned.speedup:.2f} times as fast as the defaults" if tuned.speedup > 1 else "the defaults won"
        why = f"tuned on {when}: {gain}"
    if profile is Profile.AUTO:
        return base, f"profile auto, {why}", ()
    if tuned is None or not tuned.rounded_vision:
        base = base.with_encoder(INT8_ENCODER)
    notes: tuple[str, ...] = ()
    if not is_w8a8(bundle):
        note = (
            f"profile fast: the decoder of this bundle is {bundle.precision}; `batchcap export --precision w8a8` makes "
            "a faster one of other weights, and `batchcap verify` says how close it is"
        )
        notes = (note,)
    elif tuned is None:
        base = replace(base, slots=W8A8_SLOTS)
    return base, f"profile fast, {why}", notes


def is_w8a8(bundle: Bundle) -> bool:
    """Whether the decoder multiplies 8-bit integers, and so gains from many rows at once."""
    return bundle.precision.startswith("w8a8")


def _known_encoder(stored: tuple[str, str] | None) -> Encoder | None:
    if stored is None:
        return None
    try:
        return VisionBackend(stored[0]), VisionDtype(stored[1])
    except ValueError:  # of a later batchcap; comparing the fingerprints will name it
        return None


def _resolved(encoder: Encoder) -> Encoder:
    return resolve_encoder(VisionConfig(backend=encoder[0], dtype=encoder[1]))


def _usable(encoder: Encoder) -> bool:
    """Whether it is installed here."""
    try:
        _resolved(encoder)
    except UsageError:
        return False
    return True
