"""Quantities as people write them in a spec: sizes and shares."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("", 1000), ("B", 1000), ("iB", 1024))
}


def parse_bytes(value: object) -> int:
    """Return the bytes that `2GiB`, `500MB` or a plain number stand for.

    Raises:
        ValueError: the text is not a positive size.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("write a size such as 2GiB, 500MB or a number of bytes")
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if not match or match[2] not in _UNITS:
        raise ValueError("write a size such as 2GiB, 500MB or a number of bytes")
    size = int(Fraction(match[1]) * _UNITS[match[2]])
    if size <= 0:
        raise ValueError("a size must be positive")
    return size


def parse_share_or_count(value: object) -> float | int:
    """Return a share (`1%` or 0.01) as a float in [0, 1], and a whole number as it is.

    Raises:
        ValueError: the value is neither.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)
        if not match or float(match[1]) > 100:
            raise ValueError("write a share such as 1% or a number of rows")
        return float(match[1]) / 100
    if isinstance(value, float) and 0 <= value <= 1:
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("write a share such as 1% or a number of rows")
    return value


_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def parse_duration(value: object) -> float | None:
    """Return the seconds that `90s`, `30m`, `6h`, `2d` or a plain number stand for; None stays.

    Raises:
        ValueError: the value is not a positive time.
    """
    problem = ValueError("write a time such as 90s, 30m, 6h, 2d or a number of seconds")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise problem
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(value))
    if not match or (match[2] or "s") not in _SECONDS:
        raise problem
    seconds = float(match[1]) * _SECONDS[match[2] or "s"]
    if not 0 < seconds < 1e9:
        raise problem
    return seconds
