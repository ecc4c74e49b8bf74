"""What every section of a spec has in common, and explaining what is wrong with one."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError


class Section(BaseModel):
    """A frozen section that forbids unknown keys and converts nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _whole_number_to_float(value: object) -> object:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


Real = Annotated[float, BeforeValidator(_whole_number_to_float)]
"""A float that may be written without a point."""


def explain(exc: ValidationError, whole: str) -> str:
    """Return a line for each wrong key: which it is, its value, and what would be right.

    `whole` stands for the key where it is the section itself that is wrong.
    """
    lines = []
    for error in exc.errors(include_url=False):
        key = ".".join(str(part) for part in error["loc"])
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            message = "unknown key"
        elif error["type"] == "missing":
            message = "this key is required"
        else:
            message = f"{message} (found {error['input']!r:.80})"
        lines.append(f"{key or whole}: {message}")
    return "\n".join(dict.fromkeys(lines))
