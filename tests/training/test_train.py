"""The training can be stopped and resumed without changing its result."""

import dataclasses
from collections.abc import Generator
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training import train
from training.batches import Batch, make_batch
from training.train import Plan, Trainer

pytestmark = pytest.mark.slow

STEPS = 3


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "BATCH_SIZE", 1)
    monkeypatch.setattr(train, "batches", drawn_here)
    monkeypatch.setattr(Trainer, "_report", lambda _self: None)


def drawn_here(seed: int, first_step: int, size: int) -> Generator[Batch, None, None]:
    """The same batches without a process of their own, which takes seconds to start."""
    for step in count(first_step):
        yield make_batch(seed, step, size)


def run(folder: Path, *minutes: float) -> dict[str, torch.Tensor]:
    plan = Plan(STEPS, 1, folder / "state.pt", folder / "checkpoint")
    for each in minutes:
        Trainer(dataclasses.replace(plan, minutes=each)).run()
    weights: dict[str, torch.Tensor] = load_file(folder / "checkpoint" / "model.safetensors")
    return weights


def test_a_resumed_training_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", float("inf"))
    # Without time, a run makes one step.
    pieces = run(tmp_path / "pieces", 0, float("inf"))
    assert torch.load(tmp_path / "pieces" / "state.pt", weights_only=True)["step"] == STEPS
    assert whole.keys() == pieces.keys()
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
