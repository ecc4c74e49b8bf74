"""The output folder: the truth about what a job has finished."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from copy import copy
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from helios_batch.data.publish import publish, remove_if_empty, revoke, sweep
from helios_batch.data.shards import Shard, ShardPlan
from helios_batch.errors import OutputError, WriteError

_JOB = "_job.json"
_SUCCESS = "_SUCCESS"
_PART_KEY = b"helios_batch"


class OutputFolder:
    """One job's parts, `_job.json` and `_SUCCESS`.

    A shard is done when its part is there. Each part carries the job's fingerprint and its own
    totals in its footer, so the folder alone tells what is done and what it took.

    Raises:
        OutputError: the path is remote, or is no folder.
    """

    def __init__(self, path: str) -> None:
        if "://" in path and not path.startswith("file://"):
            raise OutputError(
                f"output to {path.split('://', 1)[0]}:// is not available in this version",
                where="output.path",
                fix="write to a local folder",
            )
        self.path = Path(path.removeprefix("file://")).expanduser()
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(
                "the output path is a file", where=str(self.path), fix="name a folder"
            )
        self._confirm: Callable[[], None] = lambda: None

    def guarded(self, confirm: Callable[[], None]) -> OutputFolder:
        """Return the folder with `confirm` called before each file gets its name.

        What it raises refuses the file.
        """
        guarded = copy(self)
        guarded._confirm = confirm
        return guarded

    def revoke(self, shard: Shard | None = None) -> None:
        """Stop earlier attempts at a shard (or at all) that are about to publish."""
        revoke(self.path, shard.part_name if shard is not None else "")

    def check(self, fingerprint: str, identity: dict[str, Any]) -> None:
        """Check, writing nothing, that the folder is this job's or free for it.

        Raises:
            OutputError: it holds another job or other files, or can't be written.
        """
        existing = self.path
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(
                f"no folder can be written under {existing}",
                where=f"output.path, {self.path}",
                fix="choose another folder, or change its permissions",
            )
        if not self.path.exists():
            return
        found = self._read_job()
        if found is None:
            names = sorted(entry.name for entry in self.path.iterdir())
            visible = (name for name in names if not name.startswith(("_", ".")))
            foreign = next((name for name in visible if not self._is_of(fingerprint, name)), None)
            if foreign is not None:
                raise OutputError(
                    f"the folder holds files that are not of this job, such as {foreign}",
                    where=f"output.path, {self.path}",
                    fix="choose an empty or new folder",
                )
        elif found["fingerprint"] != fingerprint:
            changes = _changes(found.get("identity", {}), identity)
            raise OutputError(
                "the folder holds the output of another job; what differs:\n    "
                + "\n    ".join(changes),
                where=f"output.path, {self.path}",
                fix="choose another folder for the changed job, or undo the change to resume",
            )

    def _is_of(self, fingerprint: str, name: str) -> bool:
        """Whether a file is a part of the job, `_job.json` or not."""
        try:
            return bool(_read_note(self.path / name)["fingerprint"] == fingerprint)
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
            return False

    def claim(self, job: dict[str, Any]) -> None:
        """Make the folder this job's: write `_job.json` if it is not there yet.

        A `_SUCCESS` of a folder that has lost parts since is taken away.

        Raises:
            OutputError: the folder can't be made or written, or another job claimed it just now.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            sweep(self.path)
            (self.path / _SUCCESS).unlink(missing_ok=True)
            self._write_json(job, replace=False)
        except (OSError, WriteError) as exc:
            raise OutputError(
                f"the output folder can't be written: {exc}",
                where=f"output.path, {self.path}",
                fix="choose another folder, or change its permissions",
            ) from None
        self.check(job["fingerprint"], job["identity"])

    def finished(self, plan: ShardPlan, fingerprint: str) -> Iterator[tuple[Shard, dict[str, Any]]]:
        """Yield each finished shard with its totals as JSON values.

        Raises:
            OutputError: a part is damaged or of another job.
        """
        if not self.path.is_dir():
            return
        # one listing instead of a look-up per shard: there may be a million
        names = {entry.name for entry in os.scandir(self.path)}
        for index in range(len(plan)):
            shard = plan[index]
            if shard.part_name in names:
                yield shard, self.part_totals(shard, fingerprint)

    def publish_part(
        self, shard: Shard, table: pa.Table, fingerprint: str, totals: dict[str, Any]
    ) -> bool:
        """Publish a shard's part; return False if another attempt was first.

        Raises:
            WriteError: writing failed; nothing is visible.
            CommitRefused: another attempt has the shard, or the job was stopped.
        """
        note = json.dumps({"fingerprint": fingerprint, "shard": shard.index, "totals": totals})

        def write(file: BinaryIO) -> None:
            with pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
                writer.write_table(table)
                writer.add_key_value_metadata({_PART_KEY: note.encode()})

        return publish(self.path / shard.part_name, write, confirm=self._confirm)

    def record(self, job: dict[str, Any], *, success: bool) -> None:
        """Write the final `_job.json` and, with `success`, `_SUCCESS` after it.

        Raises:
            WriteError: writing failed.
        """
        if not success:
            (self.path / _SUCCESS).unlink(missing_ok=True)
        self._write_json(job, replace=True)
        if success:
            publish(self.path / _SUCCESS, lambda file: None, confirm=self._confirm)
            sweep(self.path)
            remove_if_empty(self.path)

    def read_note(self, name: str) -> str | None:
        """Return the text of a file beside the parts, or None if there is none.

        Raises:
            OutputError: it can't be read.
        """
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            raise OutputError(
                f"{name} can't be read: {exc}",
                where=str(self.path / name),
                fix="change its permissions, or choose another output folder",
            ) from None

    def publish_note(self, name: str, text: str, *, replace: bool = False) -> bool:
        """Write a file beside the parts; return False if another was first and stays.

        Raises:
            WriteError: writing failed; nothing is visible.
            CommitRefused: the job was stopped.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        content = text.encode()
        target, confirm = self.path / name, self._confirm
        return publish(target, lambda f: _write(f, content), replace=replace, confirm=confirm)

    def created(self) -> datetime | None:
        """Return when the job that the folder holds first began."""
        found = self.read_record()
        return datetime.fromisoformat(found["created"]) if found and "created" in found else None

    def read_record(self) -> dict[str, Any] | None:
        """Return what `_job.json` says, or None if there is none.

        Raises:
            OutputError: it can't be read.
        """
        return self._read_job() if self.path.is_dir() else None

    def has_part(self, shard: Shard) -> bool:
        """Whether the shard's part is published."""
        return (self.path / shard.part_name).exists()

    def discard_part(self, shard: Shard) -> None:
        """Take a published part away, so that its shard is run anew."""
        (self.path / _SUCCESS).unlink(missing_ok=True)
        (self.path / shard.part_name).unlink(missing_ok=True)

    def _read_job(self) -> dict[str, Any] | None:
        path = self.path / _JOB
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or "fingerprint" not in found:
                raise ValueError("it has no fingerprint")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            raise OutputError(
                f"{_JOB} can't be read: {exc}",
                where=str(path),
                fix="choose another output folder",
            ) from None
        return found

    def _write_json(self, job: dict[str, Any], *, replace: bool) -> None:
        text = json.dumps(job, indent=2, ensure_ascii=False) + "\n"

        def write(file: BinaryIO) -> None:
            file.write(text.encode())

        publish(self.path / _JOB, write, replace=replace, confirm=self._confirm)

    def part_totals(self, shard: Shard, fingerprint: str) -> dict[str, Any]:
        """Return the totals of a published part as JSON values.

        Raises:
            OutputError: the part is damaged or of another job.
        """
        path = self.path / shard.part_name
        try:
            note = _read_note(path)
            if note["fingerprint"] != fingerprint:
                raise ValueError("it carries another job's fingerprint")
            totals: dict[str, Any] = note["totals"]
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as exc:
            raise OutputError(
                f"a finished part is damaged or not of this job: {exc}",
                where=str(path),
                fix="delete that file and run the same command again; its shard will be redone",
            ) from None
        return totals


def _write(file: BinaryIO, content: bytes) -> None:
    file.write(content)


def _read_note(path: Path) -> dict[str, Any]:
    note: dict[str, Any] = json.loads(pq.read_metadata(path).metadata[_PART_KEY])
    return note


def _changes(old: Any, new: Any, path: str = "") -> list[str]:
    """Return a line for each place where two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            line
            for key in keys
            for line in _changes(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, pair in pairs for line in _changes(*pair, f"{path}[{i}]")]
    return [] if old == new else [f"{path}: was {old!r:.100}, is {new!r:.100}"]
