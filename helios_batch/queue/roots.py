"""What a worker may touch: specs from the queue can't reach outside the configured roots."""

from __future__ import annotations

import re
from pathlib import Path

from helios_batch.data.source import InputTable
from helios_batch.errors import QueueUsageError
from helios_batch.queue.settings import QueueSettings, without_secrets
from helios_batch.spec import JobSpec


def check_spec(spec: JobSpec, settings: QueueSettings) -> None:
    """Check the places that a spec names, before any of them is opened.

    Raises:
        QueueUsageError: one lies outside of the roots.
    """
    inputs, outputs = settings.input_roots, settings.output_roots
    _require("input.path", spec.input.path, inputs, "HELIOS_INPUT_ROOTS")
    _require("output.path", spec.output.path, outputs, "HELIOS_OUTPUT_ROOTS")
    if Path(spec.model).expanduser().is_dir() or spec.model.startswith((".", "/", "~")):
        _require("models", spec.model, inputs, "HELIOS_INPUT_ROOTS")


def check_files(table: InputTable, settings: QueueSettings) -> None:
    """Check where the input's files really are: a folder may hold links.

    Raises:
        QueueUsageError: one lies outside of the roots.
    """
    for file in table.files:
        if "://" not in file.name:
            _require("input.path", file.path, settings.input_roots, "HELIOS_INPUT_ROOTS")


def is_inside(path: str, roots: tuple[str, ...]) -> bool:
    """Whether a path or URL lies under one of the roots, with links followed."""
    path = path.removeprefix("file://")
    if "://" in path:
        # a URL that climbs is not normalised by every store: refuse it
        climbs = ".." in re.split(r"[/%\\]", path)
        return not climbs and any(
            "://" in root and (path + "/").startswith(root.rstrip("/") + "/") for root in roots
        )
    # of a glob, what stands before its first special character
    literal = re.split(r"[*?\[]", path, maxsplit=1)[0]
    if ".." in Path(path).parts:
        return False
    real = Path(literal).expanduser().resolve()
    return any("://" not in root and real.is_relative_to(Path(root).resolve()) for root in roots)


def _require(key: str, path: str, roots: tuple[str, ...], variable: str) -> None:
    if not is_inside(path, roots):
        raise QueueUsageError(
            f"{without_secrets(path) if '://' in path else path} lies outside of what this worker "
            "may touch",
            where=key,
            fix=f"move it under {', '.join(roots)}, or start the workers with another {variable}",
        )
