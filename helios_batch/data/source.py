"""The input as one table: which Parquet files, in which order, with which schema."""

from __future__ import annotations

import hashlib
import os
import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import glob_translate
from pyarrow import fs

from helios_batch.cache import file_digest
from helios_batch.errors import InputError

_PAGE_BUFFER = 1 << 20
_GLOB_CHARACTERS = re.compile(r"[*?\[]")


@dataclass(frozen=True, eq=False)
class InputFile:
    """One Parquet file. `name` is what `row_id.file` holds; `path` is what its filesystem opens."""

    name: str
    path: str
    filesystem: fs.FileSystem
    size: int
    schema: pa.Schema
    row_group_rows: tuple[int, ...]
    footer_digest: str

    @cached_property
    def rows(self) -> int:
        """Rows in the file."""
        return sum(self.row_group_rows)

    def open(self) -> pq.ParquetFile:
        """Open the file for streaming: pages are read as needed, not whole column chunks."""
        return pq.ParquetFile(self.filesystem.open_input_file(self.path), buffer_size=_PAGE_BUFFER)

    def content_digest(self) -> str:
        """Return a digest of the file's bytes; of a remote file, of its size and footer."""
        if not isinstance(self.filesystem, fs.LocalFileSystem):
            return f"footer:{self.size}:{self.footer_digest}"
        return f"sha256:{file_digest(Path(self.path))}"


@dataclass(frozen=True)
class InputTable:
    """All input files in order, as one table of `rows` rows.

    `folders` are the local folders that were searched for them with all below.
    """

    files: tuple[InputFile, ...]
    schema: pa.Schema
    folders: tuple[Path, ...] = ()

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(file.rows for file in self.files))

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return self._ends[-1]

    def locate(self, row: int) -> tuple[int, int]:
        """Return (file index, row within that file) of a row of the table."""
        index = bisect_right(self._ends, row)
        return index, row - (self._ends[index] - self.files[index].rows)

    def ids(self, start: int, stop: int) -> list[tuple[str, int]]:
        """Return (file name, row within it) of rows `start` to `stop - 1`."""
        ids: list[tuple[str, int]] = []
        while start < stop:
            index, offset = self.locate(start)
            file = self.files[index]
            count = min(stop - start, file.rows - offset)
            ids.extend((file.name, offset + i) for i in range(count))
            start += count
        return ids

    def require(self, columns: tuple[str, ...], key: str) -> None:
        """Check that every one of `columns` exists once in the input.

        Raises:
            InputError: naming the spec's `key`, the column and those that exist.
        """
        for column in columns:
            found = self.schema.names.count(column)
            if found != 1:
                problem = "is not in the input" if not found else "is in the input more than once"
                raise InputError(
                    f"column {column!r} {problem}",
                    where=f"{key}, {self.files[0].name}",
                    fix=f"the input has the columns {', '.join(self.schema.names)}",
                )


def open_input(*paths: str) -> InputTable:
    """Resolve `paths` (each a file, a folder, a glob, or a URL of one) and read every footer.

    Folders and globs are read in order of their paths; names that begin with `_` or `.` are left
    out of folders, as Spark and pyarrow do.

    Raises:
        InputError: nothing is there, a file is reached twice or is not readable Parquet, or schemas
            differ.
    """
    opened: dict[str, InputFile] = {}
    folders = []
    for path in paths:
        place, found, folder = _look_up(path)
        if not found:
            raise InputError(
                "no Parquet file was found",
                where=_without_secrets(path),
                fix="input.path takes a Parquet file, a folder of them, a glob or a URL",
            )
        for place_path in found:
            name = place.prefix + place_path
            where = name if "://" in name else os.path.abspath(name)  # noqa: PTH100 - keeps links
            if where in opened:
                raise InputError(
                    "the file is reached twice",
                    where=f"{name}, through {_without_secrets(path)}",
                    fix="leave out the path that names it again",
                )
            opened[where] = _open_file(place.filesystem, place_path, name)
        if folder and isinstance(place.filesystem, fs.LocalFileSystem):
            folders.append(Path(folder))
    files = tuple(opened.values())
    schema = files[0].schema
    for file in files[1:]:
        if not file.schema.equals(schema):
            raise InputError(
                f"the input files have different schemas: {_difference(schema, file.schema)}",
                where=f"{file.name}, compared with {files[0].name}",
                fix="give files of one schema, or write them anew with one",
            )
    return InputTable(files, schema, tuple(folders))


def has_files(*paths: str) -> bool:
    """Whether any of the paths leads to a file that `open_input` would open.

    Raises:
        InputError: they can't be looked up.
    """
    return any(_look_up(path)[1] for path in paths)


def local_files(path: str) -> list[str]:
    """Return the local files that `open_input` opens for `path`, unopened; of a URL, none.

    Raises:
        InputError: they can't be looked up.
    """
    if "://" in path and not path.startswith("file://"):
        return []
    return _look_up(path)[1]


class _Place(NamedTuple):
    """A filesystem, a path or glob in it, and what to put before paths to name them."""

    filesystem: fs.FileSystem
    path: str
    prefix: str


def _look_up(path: str) -> tuple[_Place, list[str], str | None]:
    try:
        place = _locate(path)
        return place, *_list(place)
    # paths that can't be encoded are ValueErrors, a home folder that is none a RuntimeError
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as exc:
        raise InputError(
            f"can't look up the input: {exc}",
            where=_without_secrets(path),
            fix="check the path, its permissions and, for a URL, the connection",
        ) from None


def _locate(path: str) -> _Place:
    if "://" not in path:
        return _Place(fs.LocalFileSystem(), str(Path(path).expanduser()), "")
    # from_uri takes no glob, so it sees the part before the first one; in a URL `?` begins a query
    glob = re.search(r"[^/]*[*\[].*", path)
    base = path[: glob.start()] if glob else path
    try:
        filesystem, root = fs.FileSystem.from_uri(base)
    except (pa.ArrowException, OSError, ValueError) as exc:
        raise InputError(
            f"can't open the input's filesystem: {_without_secrets(str(exc))}",
            where=_without_secrets(path),
            fix="use a local path or a URL that pyarrow.fs knows: file, s3, gs, hdfs",
        ) from None
    scheme = path.split("://", 1)[0]
    prefix = "" if scheme == "file" else f"{scheme}://"
    return _Place(filesystem, f"{root.rstrip('/')}/{glob[0]}" if glob else root, prefix)


def _without_secrets(text: str) -> str:
    """Return `text` without the user and password of a URL, and without its query."""
    return re.sub(r"\?\S*", "", re.sub(r"//[^/@\s]*@", "//", text)) if "://" in text else text


def _list(place: _Place) -> tuple[list[str], str | None]:
    """Return the files in order, and the folder that was listed with all below it, if one was."""
    filesystem, root, _ = place
    kind = filesystem.get_file_info(root).type
    if kind == fs.FileType.File:
        return [root], None
    if kind == fs.FileType.Directory:
        base, matches, deep = root.rstrip("/") or "/", r"(.*/)?[^/]+\.(parquet|pq)", True
    elif _GLOB_CHARACTERS.search(root):
        literal = _GLOB_CHARACTERS.split(root, maxsplit=1)[0]
        base = literal.rpartition("/")[0] or ("/" if literal.startswith("/") else ".")
        pattern = root.removeprefix("/" if base == "/" else f"{base}/")
        matches, deep = glob_translate(pattern), "/" in pattern
    else:
        return [], None
    selector = fs.FileSelector(base, recursive=deep, allow_not_found=True)
    prefix = {".": "./", "/": "/"}.get(base, f"{base}/")
    found = []
    for entry in filesystem.get_file_info(selector):
        relative = entry.path.removeprefix(prefix)
        hidden = any(part.startswith(("_", ".")) for part in PurePosixPath(relative).parts)
        if entry.type == fs.FileType.File and not hidden and re.fullmatch(matches, relative):
            found.append(relative if base == "." else entry.path)
    return sorted(found), base if deep else None


def _open_file(filesystem: fs.FileSystem, path: str, name: str) -> InputFile:
    try:
        with filesystem.open_input_file(path) as handle:
            size = handle.size()
            metadata = pq.read_metadata(handle)
            schema = metadata.schema.to_arrow_schema()
            footer = pa.BufferOutputStream()
            metadata.write_metadata_file(footer)
    except (pa.ArrowException, OSError) as exc:
        raise InputError(
            f"not a readable Parquet file: {exc}",
            where=name,
            fix="check that the file is whole: its last four bytes are PAR1",
        ) from None
    groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    digest = hashlib.sha256(footer.getvalue()).hexdigest()
    return InputFile(name, path, filesystem, size, schema.remove_metadata(), groups, digest)


def _describe(field: pa.Field) -> str:
    return f"{field.type}{'' if field.nullable else ' not null'}"


def _difference(left: pa.Schema, right: pa.Schema) -> str:
    for name in dict.fromkeys([*left.names, *right.names]):
        sides = [
            _describe(schema.field(name)) if name in schema.names else "absent"
            for schema in (left, right)
        ]
        if sides[0] != sides[1]:
            return f"column {name!r} is {sides[1]} here and {sides[0]} there"
    return "the columns stand in another order"
