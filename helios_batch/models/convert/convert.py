"""Converting a checkpoint: the folder appears whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from helios_batch.errors import ModelError
from helios_batch.models.convert.balcony import BalconyCheckpoint, is_balcony
from helios_batch.models.convert.source import Conversion, Order, Source
from helios_batch.models.convert.writer import SHARD_BYTES
from helios_batch.models.megatron.checkpoint import MegatronCheckpoint


def convert(
    source: Path,
    target: Path,
    tokenizer: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
    shard_bytes: int = SHARD_BYTES,
) -> Conversion:
    """Write a Llama folder `target` with its exits from a checkpoint of EE-LLM's or Balcony's.

    Raises:
        ModelError: `source` is none, or is damaged, unsupported or not to be trusted; or `target`
            has something in it.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(
            "the target exists already", where=str(target), fix="name a folder that does not"
        )
    checkpoint: Source
    checkpoint = BalconyCheckpoint(source) if is_balcony(source) else MegatronCheckpoint(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as name:
        folder = Path(name) / "model"
        folder.mkdir()
        conversion = checkpoint.write(folder, Order(target.name, tokenizer, shard_bytes, report))
        folder.replace(target)
    return conversion
