"""The cache folder of this machine: packs, and content digests of large files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

_CHUNK = 1 << 20


def cache_folder() -> Path:
    """Return `HELIOS_CACHE`, or `helios_batch` in the user's cache folder; it may not exist yet."""
    if given := os.environ.get("HELIOS_CACHE"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "helios_batch"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes.

    It is remembered in the cache folder by path, inode, size and times, so that a large weight
    file is hashed once. A cache that can't be written is done without.
    """
    real = path.resolve()
    status = real.stat()
    # a change of content moves the ctime even where tools restore the mtime
    key = [str(real), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    note = cache_folder() / "digests" / f"{hashlib.sha256(str(real).encode()).hexdigest()}.json"
    try:
        remembered = json.loads(note.read_text())
        if remembered["key"] == key:
            return str(remembered["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = hashlib.sha256()
    with real.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        fresh = note.with_name(f"{note.name}.{os.getpid()}")
        fresh.write_text(json.dumps({"key": key, "sha256": digest.hexdigest()}))
        fresh.replace(note)
    except OSError:
        pass
    return digest.hexdigest()
