"""Keeping what was measured on this machine, in the user's own repository."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from helios_batch.errors import ModelError
from helios_batch.models.repository.entry import Entry, Repository, canonical
from helios_batch.models.repository.files import read_entries, user_repository

RECORDED = "recorded.yaml"
"""The file that is written here; the others of the folder are the user's."""


def record(entry: Entry) -> None:
    """Put an entry's measurements into the user's own repository.

    Each replaces the one of the same model, task, hardware, dtype and depth, unless that is of a
    later day. Several processes may record at once; the file is whole at any moment.

    Raises:
        ModelError: the repository can't be written, or its file of recorded entries is malformed.
        ValueError: the entry measured deeper than the model that is recorded by its name.
    """
    named = entry.model_copy(update={"name": canonical(entry.name)})
    folder = user_repository()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{RECORDED}.lock"):
            file = folder / RECORDED
            known = Repository(tuple(read_entries(file)) if file.exists() else ())
            _write(file, known.updated(named))
    except OSError as exc:
        raise ModelError(
            f"what was measured can't be recorded: {exc}",
            where=str(folder),
            fix="make it a folder that can be written, or set HELIOS_CACHE to another place",
        ) from None


def _write(file: Path, repository: Repository) -> None:
    data = {"models": [_plain(entry) for entry in repository.entries]}
    fresh = file.with_name(f".{file.name}.new")
    with fresh.open("w", encoding="utf-8") as stream:
        stream.write(
            "# written by helios-batch as it measures; your own entries go in other files\n"
        )
        yaml.safe_dump(data, stream, sort_keys=False, allow_unicode=True)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)


def _plain(entry: Entry) -> dict[str, Any]:
    plain: dict[str, Any] = entry.model_dump(exclude_none=True)
    return plain
