"""Models that lie inside this package, ready to use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ShippedPack:
    """A model folder of this package, named by its path under `helios_batch/models`."""

    name: str
    title: str
    license: str
    source: str
    num_layers: int
    place: str

    @property
    def folder(self) -> Path:
        """Where the model's files lie."""
        return Path(__file__).parent / self.place / self.name
