"""Exit files: one safetensors file per exit, its metadata in the header.

Tensors, in the layouts of `models.weights` (matrices are (out, in), QKV and gate/up fused, norm
weights as they multiply):

- `bridge.weight`, `bridge.bias`: the affine map from the last loaded layer to the tail's input;
- `delta.{layer}.{slot}.down` [r, in] and `.up` [out, r]: what is added to a matrix of the model's
  own layer, loaded or of the tail, while it runs at this exit (LoRA, arXiv 2106.09685);
- `replace.{layer}.{slot}.weight`, `.bias`: what takes the place of one;
- `layers.{i}.{slot}.weight`, `.bias`: decoder layers of the exit's own;
- `mlp.{slot}.weight`, `.bias`: a gated MLP as the model's, with its norm, added to its input;
- `norm.weight`, `norm.bias`: its own final norm; `head.weight`: its own output head.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from helios_batch.cache import file_digest
from helios_batch.errors import ModelError
from helios_batch.models.checkpoint import Checkpoint, read_metadata
from helios_batch.models.exits.metadata import KEY, NO_EXIT, ExitMetadata, ExitShape
from helios_batch.models.folder import ModelFolder

if TYPE_CHECKING:  # finding exits needs no torch
    import torch


@dataclass(frozen=True)
class ExitFile:
    """An exit on this machine's disk that fits its model."""

    path: Path
    metadata: ExitMetadata

    @property
    def depth(self) -> int:
        """Layers of the model that are loaded."""
        return self.metadata.depth

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return file_digest(self.path)

    @cached_property
    def changed(self) -> frozenset[int]:
        """Those of the model's layers, loaded or of the tail, that the exit changes."""
        with Checkpoint(self.path) as checkpoint:
            changes = [n for n in checkpoint.entries if n.startswith(("delta.", "replace."))]
        return frozenset(int(name.split(".")[1]) for name in changes)

    @property
    def first_adapted(self) -> int:
        """The first of the model's loaded layers that the exit changes, or its depth if none."""
        return min([self.depth, *self.changed])

    @cached_property
    def shape(self) -> ExitShape:
        """What the exit adds to the loaded layers; deltas and replacements add nothing."""
        with Checkpoint(self.path) as checkpoint:
            elements = sum(
                math.prod(entry.shape)
                for name, entry in checkpoint.entries.items()
                if not name.startswith(("delta.", "replace."))
            )
        tail = len(self.metadata.tail)
        return ExitShape(tail + self.metadata.own_layers, tail, elements)


def exit_shape(exit_file: ExitFile | None) -> ExitShape:
    """Return what an exit, or none, adds to the loaded layers."""
    return NO_EXIT if exit_file is None else exit_file.shape


def exits_shape(exits: Iterable[ExitFile]) -> ExitShape:
    """Return what exits add, beside each other, to a model all of whose layers are loaded.

    They share what they don't change of these.
    """
    found = list(exits)
    return ExitShape(
        layers=sum(exit_file.shape.layers for exit_file in found),
        tail_layers=sum(len(e.changed.intersection(e.metadata.tail)) for e in found),
        elements=sum(exit_file.shape.elements for exit_file in found),
    )


def exit_kind(model: ModelFolder, depth: int, exit_file: ExitFile | None) -> str:
    """Return what tokens leave through at a depth: see `records.EngineFacts`."""
    if depth == model.config.num_layers:
        return "full"
    if exit_file is not None:
        return exit_file.metadata.kind
    return "native" if model.native_exits else "plain"


def open_exit(path: Path, model: ModelFolder) -> ExitFile:
    """Read an exit file's metadata, and check that it is the model's.

    Raises:
        ModelError: it can't be read, is no exit, or belongs to another model.
    """
    try:
        metadata = ExitMetadata.from_json(read_metadata(path).get(KEY, "{}"))
    except ValueError as exc:
        raise ModelError(
            f"not an exit file: {exc}",
            where=str(path),
            fix="make exits with: helios-batch models tune",
        ) from None
    if metadata.backbone != model.digest:
        raise ModelError(
            f"the exit belongs to {metadata.model} ({metadata.backbone[:12]}), not to "
            f"{model.name} ({model.digest[:12]}): their contents differ",
            where=str(path),
            fix=f"tune exits for this model: helios-batch models tune {model.name}",
        )
    return ExitFile(path, metadata)


def find_exits(model: ModelFolder, folder: Path | None = None) -> dict[int, ExitFile]:
    """Return the exits in `folder`, or those that come with the model, by depth.

    Raises:
        ModelError: a file there is no exit of the model, or two have one depth.
    """
    found: dict[int, ExitFile] = {}
    if folder is not None and not folder.is_dir():
        raise ModelError(
            "there is no folder of exits",
            where=str(folder),
            fix="name the folder that models tune wrote, or leave exits.path out",
        )
    places = [folder] if folder is not None else model.exit_folders
    for place in places:
        for path in sorted(place.glob("*.safetensors")):
            exit_file = open_exit(path, model)
            if exit_file.depth in found and folder is not None:
                raise ModelError(
                    f"two exits are at depth {exit_file.depth}: {found[exit_file.depth].path.name} "
                    f"and {path.name}",
                    where=str(place),
                    fix="leave one of them in the folder",
                )
            found.setdefault(exit_file.depth, exit_file)
    return found


def write_exit(path: Path, metadata: ExitMetadata, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write an exit file, whole or not at all; tensors are stored in the types they have."""
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        # save_file would make it readable by nobody else
        fresh.write_bytes(save(stored, metadata={"format": "pt", KEY: metadata.to_json()}))
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
