"""The corpus: documentation and source code of this Python and of packages installed with it."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from helios_batch.models.nano.licences import licence_of
from helios_batch.models.nano.text import code_documents, docs_documents

Kind = Literal["docs", "code"]
KINDS: tuple[Kind, ...] = ("docs", "code")
# dependencies of this project (direct, or of torch and celery) under one of the licences taken
PACKAGES = (
    *("accelerate", "anyio", "billiard", "celery", "click", "filelock", "fsspec", "gguf"),
    *("huggingface_hub", "idna", "jinja2", "kombu", "markdown-it-py", "mpmath", "networkx"),
    *("packaging", "pandas", "prometheus-client", "prompt-toolkit", "psutil", "pyarrow"),
    *("pydantic", "pygments", "python-dateutil", "pyyaml", "redis", "requests", "rich"),
    *("safetensors", "setuptools", "sympy", "tokenizers", "transformers", "typer", "urllib3"),
)
# no package may drown the others: files beyond this many bytes are left out, by order of hash
PACKAGE_BYTES = 6_000_000
HELD_OUT_SHARE = 16  # one file in so many is never trained on
_SUFFIXES = {".py", ".rst", ".md"}
_LEFT_OUT = {"tests", "test", "testing", "idle_test", "site-packages", "_vendor", "__pycache__"}
_LARGEST_FILE = 400_000


@dataclass(frozen=True)
class Source:
    """Where text comes from: the standard library or an installed package."""

    name: str
    version: str
    licence: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Corpus:
    """Documents of one kind; no document of `held_out` is in `train`."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def installed_sources(packages: Iterable[str] = PACKAGES) -> list[Source]:
    """Find the standard library and the packages that are installed and freely licensed.

    A package that isn't installed, or whose metadata names another licence, is left out.
    """
    version = ".".join(map(str, sys.version_info[:3]))
    root = Path(sysconfig.get_path("stdlib"))
    sources = [Source("python", version, "PSF-2.0", tuple(_text_files(root.rglob("*"), root)))]
    for name in sorted(packages):
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        licence = licence_of(distribution.metadata)
        if licence is None:
            continue
        root = Path(str(distribution.locate_file("")))
        files = (Path(str(distribution.locate_file(file))) for file in distribution.files or ())
        found = tuple(_text_files(files, root))
        sources.append(Source(name, distribution.version, licence, found))
    return sources


def build_corpus(kind: Kind, sources: Iterable[Source]) -> Corpus:
    """Read the documents of one kind, each once, split by the hash of the file they stand in.

    The result depends only on the contents of the files, not on where they lie. A document that
    stands in files of both sides is trained on and not held out.
    """
    extract = docs_documents if kind == "docs" else code_documents
    train: dict[str, None] = {}
    held_out: dict[str, None] = {}
    for source in sources:
        for digest, suffix, text in _read(source.files):
            side = held_out if int(digest[:8], 16) % HELD_OUT_SHARE == 0 else train
            side.update(dict.fromkeys(extract(text, suffix)))
    return Corpus(tuple(train), tuple(text for text in held_out if text not in train))


def _text_files(files: Iterable[Path], root: Path) -> Iterator[Path]:
    for file in files:
        if file.suffix not in _SUFFIXES or not file.is_relative_to(root):
            continue
        folders = file.relative_to(root).parts[:-1]
        if not _LEFT_OUT & set(folders) and not any(
            name.endswith(".dist-info") for name in folders
        ):
            yield file


def _read(files: Iterable[Path]) -> Iterator[tuple[str, str, str]]:
    """Yield (hash, suffix, text) in order of the hash, up to `PACKAGE_BYTES` in all."""
    found = {}
    for file in files:
        content = file.read_bytes() if file.is_file() else b""
        if 0 < len(content) <= _LARGEST_FILE:
            found[hashlib.sha256(content).hexdigest()] = (file.suffix, content)
    taken = 0
    for digest, (suffix, content) in sorted(found.items()):
        taken += len(content)
        if taken > PACKAGE_BYTES:
            return
        yield digest, suffix, content.decode("utf-8", "replace")
