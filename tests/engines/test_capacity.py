"""A job takes as many slots as fit into the free memory, and never none."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from batchcap.config import GenerationConfig, InputConfig, JobConfig, PlacementConfig
from batchcap.core.machine import MIB
from batchcap.decoder import packed_weights as kept
from batchcap.engines import capacity
from batchcap.engines.capacity import MemoryNeed, fitted_to_memory, memory_need
from batchcap.engines.config import EngineConfig
from batchcap.model.bundle import Bundle

NEED = MemoryNeed(runtime=100, vision=50, decoders=30, queue=20, slot=10)
CONFIG = JobConfig(InputConfig(("pictures",)), output="out")


def need_of(bundle: Bundle, job: JobConfig) -> MemoryNeed:
    return memory_need(EngineConfig.of_job(bundle, job))


@pytest.mark.parametrize(("free", "slots"), [(10_000, 16), (400, 16), (399, 15), (300, 7), (234, 1), (10, 1)])
def test_slots_that_fit(free: int, slots: int) -> None:
    """A tenth is left free: of 400 bytes 360 are there, 200 for all but the slots."""
    assert NEED.slots_within(free, 16) == slots


def test_what_a_job_needs(tiny_bundle_int4: Bundle) -> None:
    one = need_of(tiny_bundle_int4, CONFIG)
    two = need_of(tiny_bundle_int4, replace(CONFIG, placement=PlacementConfig(decoders=2, queue_mib=64)))
    assert (two.slot, two.queue) == (2 * one.slot, 64 * MIB)
    assert two.decoders == pytest.approx(2 * one.decoders, abs=1), "small decoders share nothing"
    text = tiny_bundle_int4.geometry.text
    positions = one.slot // (2 * text.layers * text.kv_heads * text.head_dim * 4)
    assert positions > CONFIG.vision.max_visual_tokens + CONFIG.generation.max_new_tokens
    assert one.total(3) - one.total(1) == 2 * one.slot


def test_the_slot_that_prompts_share_is_counted_for_each_lane(tiny_bundle_int4: Bundle) -> None:
    def need(prompt: str | dict[str, str], **placement: int) -> MemoryNeed:
        told = PlacementConfig(**placement)
        return need_of(tiny_bundle_int4, replace(CONFIG, generation=GenerationConfig(prompt), placement=told))

    asked = {"whole": "Describe this image.", "what": "What is it?"}
    assert need("Describe this image.", decoder_threads=2).shared == 0
    one = need(asked, decoder_threads=1)
    assert 0 < one.shared < one.slot, "no features"
    assert need(asked, decoder_threads=2).shared == 2 * one.shared
    assert need(asked, decoder_threads=2, decoders=3).shared == 6 * one.shared
    assert one.total(3) == replace(one, shared=0).total(3) + one.shared
    assert replace(NEED, shared=50).slots_within(400, 16) == 11


def test_decoders_share_one_copy_of_the_weights_where_they_can(
    tiny_bundle_int4: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = replace(CONFIG, placement=PlacementConfig(decoders=2))
    monkeypatch.setattr(kept, "MIN_BYTES", 0)
    monkeypatch.setattr(kept, "file_system", lambda _: "ext4")
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path))
    one_copy = need_of(tiny_bundle_int4, CONFIG).decoders
    assert need_of(tiny_bundle_int4, two).decoders == one_copy
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path / "file"))
    assert need_of(tiny_bundle_int4, two).decoders == pytest.approx(2 * one_copy, abs=1)


def test_fewer_slots_where_memory_is_short(
    tiny_bundle_int4: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    need = need_of(tiny_bundle_int4, CONFIG)
    monkeypatch.setattr(capacity, "available_memory_bytes", lambda: int(need.total(5) / 0.9) + need.slot // 2)
    with caplog.at_level(logging.WARNING):
        assert fitted_to_memory(EngineConfig.of_job(tiny_bundle_int4, CONFIG)).placement.slots == 5
    assert f"{CONFIG.placement.slots} slots need about" in caplog.text
    assert "using 5" in caplog.text


def test_as_asked_where_there_is_room(tiny_bundle_int4: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    config = EngineConfig.of_job(tiny_bundle_int4, CONFIG)
    assert fitted_to_memory(config) == config
    assert not caplog.records
