"""Which packages may be trained on, by the licence that their metadata states."""

from __future__ import annotations

import re
from importlib.metadata import PackageMetadata

_EXPRESSION = re.compile(r"^(MIT|(New )?BSD([- ][23]-Clause)?|Apache([- ]2\.0)?|PSF-2\.0)$")
_CLASSIFIERS = {
    "MIT License": "MIT",
    "BSD License": "BSD",
    "Apache Software License": "Apache-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


def licence_of(about: PackageMetadata) -> str | None:
    """Return the licence of a package if it is MIT, BSD, Apache or PSF, else None.

    Every licence that is stated must be one of these: an expression is read as if `OR` were
    `AND`, and one with exceptions or parentheses is not taken.
    """
    stated = _field(about, "License-Expression")
    if not stated:
        # older packages: the free-text field where it is one short name, else the classifiers
        text = _field(about, "License")
        stated = text.removesuffix(" License") if 0 < len(text) <= 20 else ""
    if not stated:
        classifiers = about.get_all("Classifier") or []
        names = [c.split(" :: ")[-1] for c in classifiers if c.startswith("License ::")]
        stated = " AND ".join(_CLASSIFIERS.get(name, name) for name in names)
    parts = re.split(r" AND | OR ", stated)
    return stated if all(_EXPRESSION.match(part) for part in parts) else None


def _field(about: PackageMetadata, name: str) -> str:
    return str(about[name]).strip() if name in about else ""
