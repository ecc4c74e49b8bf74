"""Training that is interrupted goes on where it was last saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from helios_batch.models.tuning.train import Trainer
from helios_batch.tune.result import CurvePoint


def save_training(path: Path, trainer: Trainer, curve: Sequence[CurvePoint]) -> None:
    """Save what training needs to go on, whole or not at all."""
    fresh = path.with_suffix(".writing")
    points = [asdict(point) for point in curve]
    torch.save({"trainer": trainer.state(), "curve": points}, fresh)
    fresh.replace(path)


def load_training(path: Path, trainer: Trainer) -> list[CurvePoint] | None:
    """Restore a trainer, if there is something saved; return the curve so far."""
    if not path.exists():
        return None
    saved = torch.load(path, weights_only=True)
    trainer.restore(saved["trainer"])
    return [CurvePoint(**point) for point in saved["curve"]]
