"""Repositories as YAML files: the one of this package, the user's own, and one that is named."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from helios_batch.cache import cache_folder
from helios_batch.errors import ModelError
from helios_batch.models.repository.entry import Entry, Measurement, Quality, Repository
from helios_batch.spec_section import Section, explain
from helios_batch.strict_yaml import load_yaml

_PACKS = Path(__file__).with_name("packs.yaml")


def user_repository() -> Path:
    """Return the user's own repository, a folder of YAML files; it may not exist yet."""
    return cache_folder() / "models"


def load_repository(path: Path | None = None) -> Repository:
    """Return what this package knows of models, updated by another repository.

    Args:
        path: a YAML file or a folder of such, instead of the user's own.

    Raises:
        ModelError: there is no such path, or one of its files is malformed; it names the file, the
            entry and the key.
    """
    found = Repository(tuple(read_entries(_PACKS)))
    for file in _files(path or user_repository(), required=path is not None):
        found = _updated(found, file)
    return found


def read_entries(file: Path) -> list[Entry]:
    """Return the entries of one YAML file, a list under the key `models`.

    Raises:
        ModelError: the file can't be read or is malformed; it names the entry and the key.
    """
    try:
        data = load_yaml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ModelError(
            f"the model repository can't be read: {exc}",
            where=str(file),
            fix="correct the file; it holds YAML",
        ) from None
    if (
        not isinstance(data, dict)
        or set(data) != {"models"}
        or not isinstance(data["models"], list)
    ):
        raise ModelError(
            "a file of a model repository has one key, models, with a list of entries",
            where=str(file),
            fix="write models: and below it a list of entries with the keys "
            f"{', '.join(Entry.model_fields)}",
        )
    entries: dict[str, Entry] = {}
    for place, item in enumerate(data["models"], start=1):
        entry = _entry(item, place, file)
        if entry.name in entries:
            raise ModelError(
                f"entry {place}: {entry.name} is there twice",
                where=str(file),
                fix="put its measurements under one entry",
            )
        entries[entry.name] = entry
    return list(entries.values())


def _entry(item: object, place: int, file: Path) -> Entry:
    name = item.get("name", "without a name") if isinstance(item, dict) else "not a mapping"
    try:
        return Entry.model_validate(item)
    except ValidationError as exc:
        kinds: dict[str, type[Section]] = {
            "an entry": Entry,
            "a measurement": Measurement,
            "its quality": Quality,
        }
        keys = (f"{kind} takes {', '.join(made.model_fields)}" for kind, made in kinds.items())
        raise ModelError(
            f"entry {place} ({name}) is malformed:\n{explain(exc, 'entry')}",
            where=str(file),
            fix=f"correct these keys: {'; '.join(keys)}",
        ) from None


def _files(path: Path, *, required: bool) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        found = (file for file in path.iterdir() if file.suffix in (".yaml", ".yml"))
        return sorted(file for file in found if not file.name.startswith("."))
    if required:
        raise ModelError(
            "there is no such model repository",
            where=str(path),
            fix="give a YAML file or a folder of such",
        )
    return []


def _updated(known: Repository, file: Path) -> Repository:
    for entry in read_entries(file):
        try:
            known = known.updated(entry)
        except ValidationError as exc:
            raise ModelError(
                f"the entry {entry.name} does not go with what is known of this model: "
                f"{explain(exc, 'entry')}",
                where=str(file),
                fix="correct num_layers, exits or the depth of what was measured",
            ) from None
    return known
