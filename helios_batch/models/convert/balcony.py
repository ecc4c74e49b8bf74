"""Balcony's checkpoints (arXiv 2503.05005): a Llama folder with exits among its tensors.

`exit_layer_indices` of config.json are depths. The i-th exit is `model.exit_modules.{i}`: `.0` a
decoder layer, `.1` a norm, `.2` a head unless the exits share the model's.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from helios_batch.errors import ModelError
from helios_batch.models.checkpoint import Checkpoint
from helios_batch.models.convert.source import Conversion, Order, copy_tokenizer
from helios_batch.models.convert.writer import FolderWriter, write_json
from helios_batch.models.exits.file import write_exit
from helios_batch.models.exits.metadata import ExitMetadata
from helios_batch.models.folder import open_model
from helios_batch.models.tensor_names import LLAMA

_MODEL_TYPE = "nested_llama"
_OWN_KEYS = {
    *("tie_exit_lm_head", "exit_layer_indices", "exit_decoder_layer", "auto_map"),
    *("output_full_model", "output_exit_layers", "output_exit_layer"),
}
_EXIT = re.compile(r"model\.exit_modules\.(\d+)\.(.+)")


def is_balcony(source: Path) -> bool:
    """Whether a folder holds such a checkpoint."""
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == _MODEL_TYPE


class BalconyCheckpoint:
    """A checkpoint whose exits are a decoder layer and a norm each.

    Raises:
        ModelError: config.json tells of other exits.
    """

    def __init__(self, source: Path) -> None:
        self._source = source
        self._config: dict[str, Any] = json.loads((source / "config.json").read_text("utf-8"))
        self._depths = self._config.get("exit_layer_indices")
        depths, layers = self._depths, self._config.get("num_hidden_layers")
        if not isinstance(depths, list) or not all(type(depth) is int for depth in depths):
            raise self._wrong(f"exit_layer_indices is {depths!r}")
        if not self._config.get("exit_decoder_layer"):
            raise self._wrong("exit_decoder_layer is not true: the exits have no layers")
        if type(layers) is not int or not all(0 < depth < layers for depth in depths):
            raise self._wrong(f"exit_layer_indices is {depths!r} of {layers!r} layers")

    @property
    def _shared_head(self) -> bool:
        shared = self._config.get("tie_exit_lm_head")
        return bool(self._config.get("tie_word_embeddings") if shared is None else shared)

    def write(self, folder: Path, order: Order) -> Conversion:
        """Write the model to `folder`, which is empty, and its exits to `folder`/exits."""
        copy_tokenizer(order.tokenizer or self._source, folder)
        generation = self._source / "generation_config.json"
        if generation.is_file():
            shutil.copyfile(generation, folder / generation.name)
        config = {key: value for key, value in self._config.items() if key not in _OWN_KEYS}
        config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        write_json(folder / "config.json", config)
        with Checkpoint(self._source) as checkpoint:
            order.report("writing the model")
            writer = FolderWriter(folder, order.shard_bytes)
            for name in checkpoint.entries:
                if not _EXIT.fullmatch(name):
                    writer.add(name, checkpoint.read(name))
            writer.finish()
            order.report("writing the exits")
            self._write_exits(checkpoint, folder, order.name)
        return Conversion(tuple(sorted(self._depths)))

    def _write_exits(self, checkpoint: Checkpoint, folder: Path, name: str) -> None:
        model = open_model(str(folder))
        matches = [match for match in map(_EXIT.fullmatch, checkpoint.entries) if match]
        for index, depth in enumerate(self._depths):
            parts = {match[2]: match[0] for match in matches if int(match[1]) == index}
            tensors: dict[str, torch.Tensor] = {}
            for slot, sources in LLAMA.layer.items():
                for kind in ("weight", "bias"):
                    names = [f"0.{source}.{kind}" for source in sources]
                    if kind == "weight" or names[0] in parts:
                        stored = [checkpoint.read(self._take(parts, name)) for name in names]
                        tensors[f"layers.0.{slot}.{kind}"] = torch.cat(stored)
            tensors["norm.weight"] = checkpoint.read(self._take(parts, "1.weight"))
            if not self._shared_head:
                tensors["head.weight"] = checkpoint.read(self._take(parts, "2.weight"))
            if parts:
                raise self._wrong(f"nobody asked for {', '.join(sorted(parts.values())[:4])}")
            metadata = ExitMetadata(
                kind="layer:1",
                backbone=model.digest,
                model=name,
                num_layers=model.config.num_layers,
                depth=depth,
                own_layers=1,
                training={"from": "Balcony checkpoint", "exit_module": index},
            )
            write_exit(folder / "exits" / f"exit-{depth:02d}.safetensors", metadata, tensors)

    def _take(self, parts: dict[str, str], name: str) -> str:
        if name not in parts:
            raise self._wrong(f"an exit has no {name}")
        return parts.pop(name)

    def _wrong(self, what: str) -> ModelError:
        return ModelError(
            f"the exits are not Balcony's: {what}",
            where=str(self._source),
            fix="convertible are checkpoints with exit_decoder_layer, a layer and a norm per exit",
        )
