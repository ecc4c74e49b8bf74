"""Writing a Hugging Face style folder, a few gigabytes at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SHARD_BYTES = 4 << 30


class FolderWriter:
    """Writes tensors to `model.safetensors`, or to shards with their index if they are large."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._limit = shard_bytes
        self._held: dict[str, torch.Tensor] = {}
        self._held_bytes = 0
        self._total = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor, now or later; it must not change any more."""
        if self._held and self._held_bytes + tensor.nbytes > self._limit:
            self._flush()
        self._held[name] = tensor.contiguous()
        self._held_bytes += tensor.nbytes
        self._total += tensor.nbytes

    def finish(self) -> None:
        """Write what is left, and the index."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._part(1).rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards, 1):
            file = self._folder / f"model-{number:05d}-of-{count:05d}.safetensors"
            self._part(number).rename(file)
            weight_map |= dict.fromkeys(names, file.name)
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        write_json(self._folder / "model.safetensors.index.json", index)

    def _flush(self) -> None:
        self._shards.append(list(self._held))
        save_file(self._held, self._part(len(self._shards)), metadata={"format": "pt"})
        self._held, self._held_bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"


def write_json(file: Path, data: dict[str, Any]) -> None:
    """Write a JSON file for people and programs."""
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
