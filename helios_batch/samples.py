"""Sample data that every machine has: the docstrings of Python's own standard library.

`python -m helios_batch.samples FOLDER` writes `docstrings.parquet` (all of them) and
`docstrings_demo.parquet` (a few hundred, drawn at random with a fixed seed).
"""

from __future__ import annotations

import ast
import random
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

DEMO_ROWS = 300
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


def write_docstrings(folder: Path) -> None:
    """Write both files, unless they are there already."""
    folder.mkdir(parents=True, exist_ok=True)
    whole, demo = folder / "docstrings.parquet", folder / "docstrings_demo.parquet"
    if whole.exists() and demo.exists():
        return
    rows = list(docstrings())
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), whole)
    chosen = random.Random(_SEED).sample(rows, min(DEMO_ROWS, len(rows)))
    pq.write_table(pa.Table.from_pylist(chosen, schema=_SCHEMA), demo)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m helios_batch.samples FOLDER")
    write_docstrings(Path(sys.argv[1]))
