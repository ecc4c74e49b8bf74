"""Reading a job spec from a file, and explaining what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from helios_batch.errors import SpecError
from helios_batch.spec import JobSpec
from helios_batch.spec_section import explain
from helios_batch.strict_yaml import load_yaml


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} is given twice")
    return found


def _read_json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_distinct)


def load_spec(path: str | Path) -> JobSpec:
    """Read a job spec from a YAML or JSON file.

    Raises:
        SpecError: the file can't be read, is not YAML or JSON, or is not a valid spec.
    """
    where = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SpecError(
            f"can't read the job spec: {exc}",
            where=where,
            fix="give the path of a YAML or JSON file",
        ) from None
    kind = "JSON" if Path(path).suffix == ".json" else "YAML"
    try:
        data = _read_json(text) if kind == "JSON" else load_yaml(text)
    except ValueError as exc:
        raise SpecError(
            f"the job spec is not valid {kind}: {exc}",
            where=where,
            fix="correct the line that the message names",
        ) from None
    return parse_spec(data, where)


def parse_spec(data: object, where: str) -> JobSpec:
    """Validate `data`; `where` names its origin in errors.

    Raises:
        SpecError: naming every wrong key, its value and what would be right.
    """
    if not isinstance(data, dict):
        raise SpecError(
            "the spec is not a mapping of keys",
            where=where,
            fix=f"a spec takes the keys {', '.join(JobSpec.model_fields)}",
        )
    try:
        return JobSpec.model_validate(data)
    except ValidationError as exc:
        raise SpecError(explain(exc, "spec"), where=where, fix=_fix(exc)) from None


def _fix(exc: ValidationError) -> str:
    sections: dict[str, type[BaseModel]] = {
        name: field.annotation
        for name, field in JobSpec.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    for error in exc.errors():
        if error["type"] == "extra_forbidden":
            parents = [str(part) for part in error["loc"][:-1]]
            model = sections[parents[0]] if parents else JobSpec
            inside = f"{parents[0]} takes" if parents else "a spec takes"
            return f"{inside} the keys {', '.join(model.model_fields)}"
    return "correct the keys above; README.md explains each"
