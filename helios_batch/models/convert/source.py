"""What every kind of checkpoint that can be converted offers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from helios_batch.errors import ModelError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written: depths that have an exit now; `notes` tell what a user should know."""

    depths: tuple[int, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """How a conversion is to be done.

    Args:
        name: what the converted model is called, for people.
        tokenizer: folder of the tokenizer that is copied, if not the checkpoint's own.
        shard_bytes: weights larger than that are written to several files.
        report: called with a line for people at each step.
    """

    name: str
    tokenizer: Path | None
    shard_bytes: int
    report: Callable[[str], None]


class Source(Protocol):
    """A checkpoint that has been looked at, and can be converted."""

    def write(self, folder: Path, order: Order) -> Conversion:
        """Write the model to `folder`, which is empty, and its exits to `folder`/exits.

        Raises:
            ModelError: the checkpoint, or the tokenizer, is not what it should be.
        """
        ...


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a tokenizer's files.

    Raises:
        ModelError: there are none.
    """
    files = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not files:
        raise ModelError(
            "there is no tokenizer",
            where=str(source),
            fix=f"name a folder with some of {', '.join(TOKENIZER_FILES)}",
        )
    for file in files:
        shutil.copyfile(file, folder / file.name)
