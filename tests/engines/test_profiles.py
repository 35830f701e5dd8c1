"""Every setting has one source: given, the encoder the job was begun with, profile and tuning, default."""

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcap.config import InputConfig, JobConfig, PlacementConfig, Profile, VisionBackend, VisionConfig, VisionDtype
from batchcap.engines.profiles import (
    AUTO_ENCODER,
    INT8_ENCODER,
    NAMES,
    SMALL,
    W8A8_SLOTS,
    Settings,
    Tuned,
    resolve,
)
from batchcap.model.bundle import Bundle
from batchcap.store.fingerprint import fingerprint_of
from batchcap.vision import dtype

INT4 = cast("Bundle", SimpleNamespace(id="a" * 64, precision="int4 block 128 rtn"))
W8A8 = cast("Bundle", SimpleNamespace(id="b" * 64, precision="w8a8"))
ONNX_FP32 = (VisionBackend.ONNX, VisionDtype.FP32)
TORCH_FP32 = (VisionBackend.TORCH, VisionDtype.FP32)
FOUND = Settings(decoders=2, slots=32, decoder_threads=3, vision_threads=1, patch_budget=1024).with_encoder(ONNX_FP32)
DAY = datetime(2026, 11, 24, 12, tzinfo=UTC)
TUNED = Tuned(FOUND, DAY, speedup=1.5, rounded_vision=False)
ROUNDED = Tuned(FOUND.with_encoder(INT8_ENCODER), DAY, speedup=2.0, rounded_vision=True)


@pytest.fixture(autouse=True)
def _plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch is installed, the CPU has no bf16 arithmetic."""
    monkeypatch.setattr(dtype, "find_spec", lambda _name: object())
    monkeypatch.setattr(dtype, "cpu_flags", lambda: frozenset({"avx2"}))


def asked(profile: Profile = Profile.AUTO, **values: Any) -> JobConfig:
    """A job somebody gave these settings for."""
    job = JobConfig(InputConfig(("pictures",)), "out", profile=profile, explicit=frozenset(values))
    return replace(Settings(), **values).applied_to(job)


def settle(config: JobConfig, bundle: Bundle = INT4, **more: Any) -> Settings:
    return Settings.of(resolve(config, bundle, **more).config)


@pytest.mark.parametrize(
    ("profile", "bundle", "tuned", "expected"),
    [
        (Profile.AUTO, INT4, None, Settings()),
        (Profile.AUTO, W8A8, None, Settings()),
        (Profile.AUTO, INT4, TUNED, FOUND),
        (Profile.AUTO, INT4, ROUNDED, ROUNDED.settings),
        (Profile.SMALL, INT4, None, SMALL),
        (Profile.SMALL, W8A8, ROUNDED, SMALL),
        (Profile.FAST, INT4, None, Settings().with_encoder(INT8_ENCODER)),
        (Profile.FAST, W8A8, None, Settings(slots=W8A8_SLOTS).with_encoder(INT8_ENCODER)),
        (Profile.FAST, INT4, TUNED, FOUND.with_encoder(INT8_ENCODER)),
        (Profile.FAST, W8A8, ROUNDED, ROUNDED.settings),
    ],
)
def test_what_a_profile_takes(profile: Profile, bundle: Bundle, tuned: Tuned | None, expected: Settings) -> None:
    assert settle(asked(profile), bundle, tuned=tuned) == expected


@pytest.mark.parametrize(("arithmetic", "backend"), [("int8", "onnx"), ("bf16", "torch")])
def test_arithmetic_of_one_backend_is_enough_and_gives_the_same_job(arithmetic: str, backend: str) -> None:
    alone = {"vision_dtype": VisionDtype(arithmetic)}
    both = {**alone, "vision_backend": VisionBackend(backend)}
    for tuned in (None, TUNED, ROUNDED):
        found = resolve(asked(**alone), INT4, tuned)
        with_both = resolve(asked(**both), INT4, tuned)
        encoder = dtype.resolve_encoder(found.config.vision)
        assert encoder == dtype.resolve_encoder(with_both.config.vision) == (backend, arithmetic)
        assert fingerprint_of(found.config, INT4.id, encoder) == fingerprint_of(with_both.config, INT4.id, encoder)
        assert not with_both.notes
    implied = resolve(asked(**alone), INT4).notes
    assert implied == (f"--vision-dtype {arithmetic} implies --vision-backend {backend}, which alone has it",)
    assert not resolve(asked(**alone), INT4, begun_with=(backend, arithmetic)).notes


def test_small_needs_less_than_the_defaults_in_everything_and_changes_no_caption() -> None:
    default = Settings()
    assert SMALL.encoder == AUTO_ENCODER
    for name in ("decoders", "slots", "patch_budget", "queue_mib"):
        assert getattr(SMALL, name) <= getattr(default, name)
    assert default != SMALL


SETTINGS = st.builds(
    Settings,
    decoders=st.integers(1, 4),
    slots=st.integers(1, 64),
    decoder_threads=st.integers(0, 4),
    vision_threads=st.integers(0, 4),
    patch_budget=st.integers(1, 9000),
    queue_mib=st.integers(1, 500),
    vision_backend=st.sampled_from(VisionBackend),
    vision_dtype=st.sampled_from(VisionDtype),
)
ENCODERS = st.sampled_from([None, ("torch", "fp32"), ("onnx", "fp32"), ("onnx", "int8"), ("tpu", "fp4")])


@given(
    profile=st.sampled_from(Profile),
    bundle=st.sampled_from([INT4, W8A8]),
    values=SETTINGS,
    names=st.sets(st.sampled_from(NAMES)),
    tuned=st.sampled_from([None, TUNED, ROUNDED]),
    begun=ENCODERS,
)
def test_what_is_given_always_counts_and_the_rest_is_settled_once(
    profile: Profile,
    bundle: Bundle,
    values: Settings,
    names: set[str],
    tuned: Tuned | None,
    begun: tuple[str, str] | None,
) -> None:
    config = asked(profile, **{name: getattr(values, name) for name in names})
    found = resolve(config, bundle, tuned, begun).config
    for name in names:
        assert getattr(Settings.of(found), name) == getattr(values, name)
    assert resolve(found, bundle, ROUNDED, ("onnx", "int8")).config == found, "nothing is left to decide"
    # Nothing but placement and encoder has changed.
    assert Settings.of(config).applied_to(found) == replace(config, explicit=None)


@given(profile=st.sampled_from(Profile), tuned=st.sampled_from([None, TUNED, ROUNDED]), begun=ENCODERS)
def test_a_job_that_was_begun_keeps_its_encoder(
    profile: Profile, tuned: Tuned | None, begun: tuple[str, str] | None
) -> None:
    fresh, resumed = resolve(asked(profile), INT4, tuned), resolve(asked(profile), INT4, tuned, begun)
    if begun in (None, ("tpu", "fp4")):
        assert resumed == fresh
        return
    assert Settings.of(resumed.config).encoder == begun
    assert replace(Settings.of(resumed.config), vision_backend="auto") == replace(  # type: ignore[arg-type]
        Settings.of(fresh.config).with_encoder(Settings.of(resumed.config).encoder), vision_backend="auto"
    ), "what changes no caption may change"
    wanted = Settings.of(fresh.config).encoder
    differs = begun != (TORCH_FP32 if wanted == AUTO_ENCODER else wanted)
    assert any("keeps the vision encoder" in note for note in resumed.notes) == differs


def test_an_encoder_that_is_given_ends_as_another_job() -> None:
    """The fingerprints are compared after this: here only nothing may be kept against somebody's word."""
    assert settle(asked(vision_dtype=VisionDtype.FP32), begun_with=("onnx", "int8")).encoder == (
        VisionBackend.AUTO,
        VisionDtype.FP32,
    )
    # Half of what the job has: the other half is the job's.
    assert settle(asked(vision_backend=VisionBackend.ONNX), begun_with=("onnx", "int8")).encoder == INT8_ENCODER


def test_an_encoder_that_is_not_installed_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype, "find_spec", lambda _name: None)
    assert settle(asked(), begun_with=("torch", "fp32")).encoder == AUTO_ENCODER
    torch = replace(TUNED, settings=FOUND.with_encoder(TORCH_FP32))
    assert settle(asked(), tuned=torch) == FOUND.with_encoder(AUTO_ENCODER)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # An encoder is a pair: the other half of another encoder would be none.
        ({"vision_backend": VisionBackend.TORCH}, {"vision_dtype": VisionDtype.AUTO}),
        ({"vision_backend": VisionBackend.ONNX}, {"vision_dtype": VisionDtype.INT8}),
        ({"vision_dtype": VisionDtype.BF16}, {"vision_backend": VisionBackend.AUTO}),
        ({"vision_dtype": VisionDtype.INT8}, {"vision_backend": VisionBackend.ONNX}),
        # Threads were found for two decoders, and fit no other number.
        ({"decoders": 1}, {"decoder_threads": 0, "slots": 32}),
        ({"decoders": 2}, {"decoder_threads": 3}),
        ({"decoder_threads": 8}, {"decoders": 1}),
        ({"slots": 5}, {"decoders": 2, "decoder_threads": 3, "vision_threads": 1, "patch_budget": 1024}),
        ({"vision_threads": 7}, {"decoders": 2, "decoder_threads": 3}),
    ],
)
def test_settings_that_go_together(values: dict[str, Any], expected: dict[str, Any]) -> None:
    found = settle(asked(**values), tuned=ROUNDED)
    for name, value in {**values, **expected}.items():
        assert getattr(found, name) == value, name


def test_a_configuration_made_in_code_is_left_alone() -> None:
    config = JobConfig(
        InputConfig(("p",)), "o", placement=PlacementConfig(slots=3), vision=VisionConfig(), profile=Profile.FAST
    )
    assert resolve(config, W8A8, ROUNDED, ("onnx", "int8")).config is config


def test_what_a_person_is_told() -> None:
    assert resolve(asked(), INT4).why == "profile auto, not tuned for this machine: run `batchcap tune`"
    assert "1.50 times as fast" in resolve(asked(), INT4, TUNED).why
    assert "2026-11-24" in resolve(asked(), INT4, TUNED).why
    assert "the defaults won" in resolve(asked(), INT4, replace(TUNED, speedup=1.0)).why
    assert resolve(asked(slots=3, decoders=2), INT4).why.endswith("; given: --decoders, --slots")
    fast = resolve(asked(Profile.FAST), INT4)
    (note,) = fast.notes
    assert "int4 block 128 rtn" in note
    assert "export --precision w8a8" in note
    assert "batchcap verify" in note
    assert not resolve(asked(Profile.FAST), W8A8).notes
    assert not resolve(asked(), INT4, TUNED).notes
