"""Sample data that every machine has: docstrings of the standard library, names of characters.

`python -m helios_batch.samples FOLDER` writes `docstrings.parquet` (all of them),
`docstrings_demo.parquet` (a few hundred, drawn at random with a fixed seed) and
`characters.parquet` (the Unicode names of letters of four scripts, as many of each, shuffled).
"""

from __future__ import annotations

import ast
import random
import sys
import sysconfig
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

DEMO_ROWS = 300
SCRIPTS = ("LATIN", "GREEK", "CYRILLIC", "ARABIC")
_LEAST_CHARACTERS = 40
_SEED = 0
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
_SCHEMA = pa.schema([("module", pa.string()), ("name", pa.string()), ("docstring", pa.string())])


def docstrings() -> Iterator[dict[str, str]]:
    """Yield module, name and docstring of all that is documented in the standard library.

    Docstrings of under 40 characters are left out. The order is that of the files' paths.
    """
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if _LEFT_OUT.intersection(parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in old code
                tree = ast.parse(file.read_bytes())
        except SyntaxError:
            continue
        module = ".".join(parts).removesuffix(".__init__")
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            text = ast.get_docstring(node)
            if text and len(text) >= _LEAST_CHARACTERS:
                yield {"module": module, "name": getattr(node, "name", module), "docstring": text}


def characters() -> list[dict[str, str]]:
    """Return the characters of each of `SCRIPTS`, with their Unicode names, in random order."""
    draw = random.Random(_SEED)
    named = [(chr(code), unicodedata.name(chr(code), "")) for code in range(sys.maxunicode + 1)]
    by_script = [
        [{"character": c, "name": name} for c, name in named if name.startswith(f"{script} ")]
        for script in SCRIPTS
    ]
    least = min(map(len, by_script))
    rows = [row for found in by_script for row in draw.sample(found, least)]
    draw.shuffle(rows)
    return rows


def write_samples(folder: Path) -> None:
    """Write all files, unless they are there already."""
    folder.mkdir(parents=True, exist_ok=True)
    whole, demo = folder / "docstrings.parquet", folder / "docstrings_demo.parquet"
    if not (whole.exists() and demo.exists()):
        rows = list(docstrings())
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), whole)
        chosen = random.Random(_SEED).sample(rows, min(DEMO_ROWS, len(rows)))
        pq.write_table(pa.Table.from_pylist(chosen, schema=_SCHEMA), demo)
    if not (names := folder / "characters.parquet").exists():
        pq.write_table(pa.Table.from_pylist(characters()), names)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m helios_batch.samples FOLDER")
    write_samples(Path(sys.argv[1]))
