"""Atomic publishing of files: whole or absent, and the first to commit wins.

A file is written under a temporary name in the folder `_tmp` beside its target, flushed to disk,
and linked to its name. `link` fails if the name exists, so of two writers one wins and the other's
work is dropped; and it fails if the temporary file is gone, so taking that away stops a writer that
is about to commit, wherever it stands. Temporary files are locked while their writer lives;
unlocked ones are debris of a killed process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from helios_batch.crashpoint import crashpoint
from helios_batch.errors import CommitRefused, WriteError

_TEMPORARY = "_tmp"


def publish(
    target: Path,
    write: Callable[[BinaryIO], None],
    *,
    replace: bool = False,
    confirm: Callable[[], None] = lambda: None,
) -> bool:
    """Write a file whole and give it its name; return False if the name was taken.

    With `replace`, a file of that name is replaced instead, atomically. `confirm` is called when
    the file is on disk and only its name is missing; what it raises ends the commit.

    Raises:
        CommitRefused: the temporary file was revoked.
        WriteError: any step failed; nothing is visible under the name, and the temporary file is
            gone or will be swept.
    """
    temporary = target.parent / _TEMPORARY / f"{target.name}-{secrets.token_hex(8)}"
    try:
        try:
            with _locked(temporary) as file:
                crashpoint("publish.created")
                write(file)
                crashpoint("publish.written")
                file.flush()
                os.fsync(file.fileno())
                confirm()
                crashpoint("publish.confirmed")
                _commit(temporary, target, replace)
                crashpoint("publish.linked")
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(target.parent)
    except FileExistsError:
        return False
    except (OSError, pa.ArrowException) as exc:
        raise WriteError(
            f"the output could not be written: {exc}", where=str(target), fix=_advice(exc)
        ) from None
    return True


def _commit(temporary: Path, target: Path, replace: bool) -> None:
    try:
        if replace:
            temporary.replace(target)
        else:
            os.link(temporary, target)
    except FileNotFoundError:
        raise CommitRefused(
            "the file was taken away before it got its name",
            where=str(target),
            fix="nothing: another attempt has this part, or the job was stopped",
        ) from None


def revoke(folder: Path, name: str = "") -> None:
    """Stop every commit under way in `folder`, or of the file `name` alone."""
    for path in (folder / _TEMPORARY).glob(f"{name}-*" if name else "*"):
        path.unlink(missing_ok=True)


def _locked(path: Path) -> BinaryIO:
    """Create a file and lock it; a sweep may remove it between the two, so look again."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("xb")
        except FileNotFoundError:
            continue  # a job that ended took the folder away between the two
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def sweep(folder: Path) -> None:
    """Remove temporary files in `folder` whose writers are gone."""
    for path in (folder / _TEMPORARY).glob("*"):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except OSError:
            continue  # a living writer holds it, or another sweep was faster


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of temporary files, unless a writer is at work in it."""
    with suppress(OSError):
        (folder / _TEMPORARY).rmdir()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a published name survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _advice(exc: BaseException) -> str:
    code = exc.errno if isinstance(exc, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "free space on that disk and run the same command again: finished shards are kept"
    if code in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
        return "the output folder's file system must support hard links"
    return "check the output disk and run the same command again: finished shards are kept"
