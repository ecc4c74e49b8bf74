"""Training that is interrupted goes on where it was last saved."""

from __future__ import annotations

from pathlib import Path

import torch

from helios_batch.models.tuning.train import Trainer


def save_training(path: Path, trainer: Trainer, seconds: float) -> None:
    """Save what training needs to go on, whole or not at all."""
    fresh = path.with_suffix(".writing")
    torch.save({"trainer": trainer.state(), "seconds": seconds}, fresh)
    fresh.replace(path)


def load_training(path: Path, trainer: Trainer) -> float | None:
    """Restore a trainer, if there is something saved; return the seconds trained so far."""
    if not path.exists():
        return None
    saved = torch.load(path, weights_only=True)
    trainer.restore(saved["trainer"])
    return float(saved["seconds"])
