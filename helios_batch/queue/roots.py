"""What a worker may touch: specs from the queue can't reach outside the configured roots.

Links are followed before a place is judged. Who can put links into the roots while a job runs can
write there anyway, and is trusted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from helios_batch.data.source import InputTable, local_files
from helios_batch.errors import QueueUsageError
from helios_batch.queue.settings import QueueSettings, without_secrets
from helios_batch.spec import JobSpec

_GLOB = re.compile(r"[*?\[]")


def check_spec(spec: JobSpec, settings: QueueSettings) -> None:
    """Check the places that a spec names, before any file in them is opened.

    Raises:
        QueueUsageError: one lies outside of the roots, or a link in them leads outside.
    """
    inputs, outputs = settings.input_roots, settings.output_roots
    _require("output.path", [spec.output.path], outputs, "HELIOS_OUTPUT_ROOTS")
    for path in spec.input.paths:
        _require("input.path", [_searched(path)], inputs, "HELIOS_INPUT_ROOTS")
        _require("input.path", local_files(path), inputs, "HELIOS_INPUT_ROOTS")
    if spec.exits.path is not None:
        _require("exits.path", _with_files(spec.exits.path), inputs, "HELIOS_INPUT_ROOTS")
    if _is_path(spec.model):
        _require("models", _with_files(spec.model), inputs, "HELIOS_INPUT_ROOTS")


def check_files(table: InputTable, settings: QueueSettings) -> None:
    """Check the files that an input has turned out to consist of.

    Raises:
        QueueUsageError: one lies outside of the roots.
    """
    local = (file.path for file in table.files if "://" not in file.name)
    _require("input.path", local, settings.input_roots, "HELIOS_INPUT_ROOTS")


def is_inside(path: str, roots: tuple[str, ...]) -> bool:
    """Whether a path or URL, which is no glob, lies under one of the roots."""
    if "://" in path and not path.startswith("file://"):
        return any(_is_under(path, root) for root in roots if "://" in root)
    folders = [Path(root).resolve() for root in roots if "://" not in root]
    forms = {path.removeprefix("file://")}
    if path.startswith("file://"):
        # one reader of such URLs undoes their quoting, another does not
        forms.add(unquote(path.removeprefix("file://")))
    try:
        real = [Path(form).expanduser().resolve() for form in forms]
    except (OSError, ValueError, RuntimeError):  # too long, not encodable, a loop, no such user
        return False
    return all(any(place.is_relative_to(folder) for folder in folders) for place in real)


def _is_under(url: str, root: str) -> bool:
    """Whether a URL goes on where a root ends, on the same host and with the same query."""
    given, allowed = urlsplit(url), urlsplit(root)
    if (given.scheme, given.netloc, given.query) != (
        allowed.scheme,
        allowed.netloc,
        allowed.query,
    ):
        return False
    # stores differ in what they make of quoting, backslashes and dots
    climbs = ".." in re.split(r"[/\\]", unquote(unquote(given.path)))
    return not climbs and f"{given.path}/".startswith(f"{allowed.path.rstrip('/')}/")


def _searched(path: str) -> str:
    """Return the folder in which a glob looks; of a path that is no glob, the path."""
    # in a URL `?` begins the query
    base, query, after = path.partition("?") if "://" in path else (path, "", "")
    literal = _GLOB.split(base, maxsplit=1)[0]
    if literal == base:
        return path
    folder = literal.rpartition("/")[0] or ("/" if literal.startswith("/") else ".")
    return folder + query + after


def _with_files(folder: str) -> Iterator[str]:
    """Yield a folder, then what lies in it two levels deep, as a model's exits do."""
    yield folder
    for pattern in ("*", "*/*"):
        yield from map(str, Path(folder).expanduser().glob(pattern))


def _is_path(model: str) -> bool:
    try:
        return model.startswith((".", "/", "~")) or Path(model).is_dir()
    except (OSError, ValueError):
        return True


def _require(key: str, paths: Iterable[str], roots: tuple[str, ...], variable: str) -> None:
    for path in paths:
        if not is_inside(path, roots):
            shown = without_secrets(path) if "://" in path else path
            raise QueueUsageError(
                f"{shown!r:.200} lies outside of what this worker may touch",
                where=key,
                fix=f"move it under {', '.join(map(without_secrets, roots))}, or start the workers "
                f"with another {variable}",
            )
