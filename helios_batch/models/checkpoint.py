"""Reading single tensors out of safetensors files, and counting every byte read.

The format (https://huggingface.co/docs/safetensors) is a JSON header and one flat buffer. Tensors
are read with positioned reads into memory of our own: nothing else of the file is touched, and no
memory map makes resident memory larger than the tensors.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from helios_batch.errors import ModelError

if TYPE_CHECKING:  # headers are read by processes that load no torch
    import torch

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_MAX_HEADER = 100_000_000
_BUFFER_BYTES = 4 << 20
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: file, element type, shape, and byte range in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes of the tensor in the file."""
        return self.end - self.begin


class Checkpoint:
    """The tensors of a file, or of a model folder: `model.safetensors`, or shards with their index.

    `bytes_read` and `tensors_read` count what `read` has taken from the files so far; headers are
    not counted.

    Raises:
        ModelError: no safetensors file is there, or one is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_read = 0
        self.tensors_read: list[str] = []
        self._handles: dict[Path, int] = {}
        self._buffer: torch.Tensor | None = None
        self.files = _weight_files(path) if path.is_dir() else (path,)
        self.entries: dict[str, TensorEntry] = {}
        for file in self.files:
            self.entries |= _entries(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and drop the buffer; reading makes them anew when needed."""
        self._buffer = None
        while self._handles:
            os.close(self._handles.popitem()[1])

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors in the files."""
        return sum(entry.size for entry in self.entries.values())

    def entry(self, name: str) -> TensorEntry:
        """Return where a tensor lies.

        Raises:
            ModelError: the checkpoint has no tensor of that name.
        """
        if name not in self.entries:
            raise ModelError(
                f"the checkpoint has no tensor {name!r}",
                where=str(self.path),
                fix="check that all weight files of the model were downloaded",
            )
        return self.entries[name]

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor in the type it is stored in.

        Raises:
            ModelError: as `read_into` does.
        """
        import torch

        entry = self._readable(name)
        tensor = torch.empty(entry.shape, dtype=_torch_dtype(entry))
        self.read_into(name, tensor)
        return tensor

    def read_into(self, name: str, target: torch.Tensor) -> None:
        """Read one tensor into `target`, of the same shape and of any type, device and strides.

        It passes through a small buffer, so that loading takes no more memory than is loaded.

        Raises:
            ModelError: it is missing, of an unsupported type, or the file ends early.
        """
        entry = self._readable(name)
        if target.shape != entry.shape:
            raise ValueError(f"tensor {name!r} is {entry.shape}, the target {target.shape}")
        rows = entry.shape[0] if entry.shape else 1
        row_bytes = max(1, entry.size // max(1, rows))
        step = max(1, _BUFFER_BYTES // row_bytes)
        handle = self._open(entry.file)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            stored = self._buffer_of(count * row_bytes)
            self._read_bytes(handle, stored, entry.begin + first * row_bytes, name, entry.file)
            part = stored.view(_torch_dtype(entry)).view(count, *entry.shape[1:])
            target[first : first + count].copy_(part)
        self.bytes_read += entry.size
        self.tensors_read.append(name)

    def _readable(self, name: str) -> TensorEntry:
        entry = self.entry(name)
        if entry.dtype not in _DTYPES:
            raise ModelError(
                f"tensor {name!r} is stored as {entry.dtype}",
                where=str(entry.file),
                fix=f"use a checkpoint stored as one of {', '.join(_DTYPES)}",
            )
        return entry

    def _buffer_of(self, size: int) -> torch.Tensor:
        import torch

        if self._buffer is None or size > len(self._buffer):
            self._buffer = torch.empty(size, dtype=torch.uint8)
        return self._buffer[:size]

    @staticmethod
    def _read_bytes(handle: int, into: torch.Tensor, offset: int, name: str, file: Path) -> None:
        buffer = into.numpy().data
        done = 0
        while done < len(buffer):
            count = os.preadv(handle, [buffer[done:]], offset + done)
            if count == 0:
                raise ModelError(
                    f"the file ends inside tensor {name!r}",
                    where=str(file),
                    fix="download or copy the file again",
                )
            done += count

    def _open(self, file: Path) -> int:
        if file not in self._handles:
            self._handles[file] = os.open(file, os.O_RDONLY)
        return self._handles[file]


def _torch_dtype(entry: TensorEntry) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, _DTYPES[entry.dtype])
    return dtype


def _weight_files(folder: Path) -> tuple[Path, ...]:
    single, index = folder / "model.safetensors", folder / _INDEX
    if single.is_file():
        return (single,)
    if not index.is_file():
        raise ModelError(
            "no safetensors weights were found",
            where=str(folder),
            fix=f"the folder must hold model.safetensors, or shards with {_INDEX}; "
            "pickled weights (.bin, .pt) are never opened",
        )
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as exc:
        raise ModelError(
            f"the weight index can't be read: {exc!r}",
            where=str(index),
            fix="download the model's index file again",
        ) from None
    files = tuple(folder / name for name in names)
    for name, file in zip(names, files, strict=True):
        if Path(name).name != name or not file.is_file():
            raise ModelError(
                f"the index names {name!r}, which is not in the folder",
                where=str(index),
                fix="download all weight files of the model",
            )
    return files


def read_metadata(file: Path) -> dict[str, str]:
    """Return the free-form metadata of a safetensors file's header.

    Raises:
        ModelError: it is no whole safetensors file.
    """
    metadata = _read_header(file)[0].get("__metadata__", {})
    return {str(key): str(value) for key, value in metadata.items()}


def _read_header(file: Path) -> tuple[dict[str, Any], int, int]:
    """Return a file's header, where its data begins, and its size in bytes."""
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            (length,) = struct.unpack("<Q", stream.read(8))
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
        if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
            raise ValueError("its header is no JSON object")
        return header, 8 + length, size
    except (OSError, ValueError, struct.error) as exc:
        raise _not_whole(file, exc) from None


def _entries(file: Path) -> dict[str, TensorEntry]:
    header, data, size = _read_header(file)
    header.pop("__metadata__", None)
    entries = {}
    try:
        for name, item in header.items():
            begin, end = item["data_offsets"]
            shape = tuple(item["shape"])
            entry = TensorEntry(file, item["dtype"], shape, data + begin, data + end)
            _check(name, entry, size)
            entries[name] = entry
    except (ValueError, KeyError, TypeError) as exc:
        raise _not_whole(file, exc) from None
    return entries


def _not_whole(file: Path, problem: Exception) -> ModelError:
    return ModelError(
        f"not a whole safetensors file: {problem}",
        where=str(file),
        fix="download or copy the file again",
    )


def _check(name: str, entry: TensorEntry, file_size: int) -> None:
    if not 0 <= entry.begin <= entry.end <= file_size:
        raise ValueError(f"tensor {name!r} lies beyond the end of the file")
    if entry.dtype in _DTYPES:
        elements = 1
        for extent in entry.shape:
            elements *= extent
        if elements * _BYTES[entry.dtype] != entry.size:
            raise ValueError(f"tensor {name!r} has {entry.size} bytes for shape {entry.shape}")
