"""A model as a folder: what a name in the spec stands for, and what its config says."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from helios_batch.cache import file_digest
from helios_batch.errors import ModelError
from helios_batch.models.architectures import Architecture, architecture_of
from helios_batch.models.catalog import has_native_exits
from helios_batch.models.config import DecoderConfig
from helios_batch.models.packs import PACKS, is_fetched, pack_folder
from helios_batch.models.wheels import WheelPack

_SHIPPED_EXITS = Path(__file__).parent / "exits" / "shipped"
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True)
class ModelFolder:
    """A model on this machine's disk; `name` is what the user called it.

    `pack_digest` is set for a fetched pack, whose files may differ in form between versions of the
    libraries that converted it. With `native_exits` it was trained to be left at any layer.
    """

    name: str
    path: Path
    architecture: Architecture
    config: DecoderConfig
    eos_tokens: frozenset[int]
    pack_digest: str | None = None
    native_exits: bool = False

    @property
    def exit_folders(self) -> list[Path]:
        """Where exits that come with the model lie: beside it, and a pack's in this package."""
        shipped = [_SHIPPED_EXITS / self.name] if self.pack_digest else []
        return [self.path / "exits", *shipped]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names and contents of all files that decide what the model says."""
        if self.pack_digest:
            return self.pack_digest
        digest = hashlib.sha256()
        for pattern in _FILES:
            for file in sorted(self.path.glob(pattern)):
                digest.update(f"{file.name}\0{file_digest(file)}\0".encode())
        return digest.hexdigest()


def open_model(name: str) -> ModelFolder:
    """Find the model that `name` stands for: a pack, a local folder, or a hub id.

    A hub id is looked up and downloaded through `huggingface_hub`, with its cache and its offline
    mode. No code from the model is ever run.

    Raises:
        ModelError: nothing of that name is to be had, or its architecture is not supported.
    """
    path = _locate(name)
    config = _read_config(path)
    model_type = config.get("model_type")
    architecture = architecture_of(str(model_type), str(path / "config.json"))
    # transformers normalises old and new spellings of the same setting
    from transformers import AutoConfig

    try:
        normalised = AutoConfig.for_model(**config)
        decoder = architecture.read_config(normalised)
    except ModelError:
        raise
    except Exception as exc:  # transformers raises many kinds
        raise ModelError(
            f"config.json is not a valid {model_type} config: {exc}",
            where=str(path / "config.json"),
            fix="download the model's config again, or correct the key that is named",
        ) from None
    pack = PACKS.get(name)
    pack_digest = pack.sha256 if isinstance(pack, WheelPack) else None
    eos_tokens = _eos_tokens(path, config)
    native = has_native_exits(name, config)
    return ModelFolder(name, path, architecture, decoder, eos_tokens, pack_digest, native)


def _locate(name: str) -> Path:
    if name in PACKS:
        if not is_fetched(PACKS[name]):
            raise ModelError(
                f"pack {name!r} has not been fetched",
                where="models",
                fix=f"run: helios-batch models fetch {name}",
            )
        return pack_folder(PACKS[name])
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(
            f"unknown model {name!r}",
            where="models",
            fix=f"name a pack ({', '.join(PACKS)}), a local folder with config.json and "
            "safetensors, or a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct",
        )
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, allow_patterns=list(_FILES), ignore_patterns=["*/*", "consolidated*"]
            )
        )
    except Exception as exc:  # the hub's client raises many kinds
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise ModelError(
            f"model {name!r} is neither a pack nor a folder here, and the hub does not give it: "
            f"{reason}",
            where="models",
            fix="check the name, the connection, HF_TOKEN for gated models, and HF_HUB_OFFLINE",
        ) from None


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as exc:
        raise ModelError(
            f"the model's config can't be read: {exc}",
            where=str(file),
            fix="a model folder holds config.json, tokenizer files and safetensors",
        ) from None
    return config


def _eos_tokens(path: Path, config: dict[str, Any]) -> frozenset[int]:
    """Read the end-of-text ids as `generate` does: the generation config's, else the config's."""
    value = config.get("eos_token_id")
    generation = path / "generation_config.json"
    if generation.is_file():
        try:
            value = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id", value)
        except (OSError, ValueError) as exc:
            raise ModelError(
                f"the generation config can't be read: {exc}",
                where=str(generation),
                fix="download that file again, or remove it",
            ) from None
    if value is None:
        return frozenset()
    return frozenset(value) if isinstance(value, list) else frozenset([value])
